// The block of CUDA threads that runs: its fibers, what each waits for, and the grid's loop over blocks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../gpu.h"
#include "fiber.h"

namespace gpu::host {

// In which order the threads of a block that can go on do: by number, the same backwards, at random, one warp as far as it
// can before the next, and that with the warps and lanes backwards.
enum class Schedule : int32_t { forward, reverse, random, warp_by_warp, warp_by_warp_reverse };

struct Options {
    Schedule schedule = Schedule::forward;
    uint32_t seed = 1;
    int32_t late_copies = 0;  // asynchronous copies bring nothing until they are waited for; else all at once
    int32_t check = 1;        // of memory: shadow.h
    int32_t count = 0;        // bank conflicts and sectors of block 0: traffic.h
};

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes;
    const void* pc;
};

struct Fiber {
    Context context;
    const Part* part = nullptr;  // in the operation of the warp that it waits for
    bool ready = true, done = false;
    uint32_t block_syncs = 0, warp_syncs = 0;  // that it has passed
    Where waits = {"", 0};
    std::vector<std::vector<Copy>> copies;  // by group, the last one open
};

struct Block {
    std::vector<Fiber> fibers;
    int running = -1;       // the thread, or -1 outside of the kernel
    int threads = 0, index = 0;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    Options options;
    bool stopped = false;  // after a fault beyond which nothing can be told
    Context scheduler;
    Stacks stacks;
    std::vector<int> at_warp;  // lanes that wait, for each warp
    int at_barrier = 0;
};
extern Block running_block;

// Runs all blocks of a grid, one after the other, until a fault stops it. Findings go to report.h.
void run_grid(Kernel kernel, const void* arguments, int blocks, int threads, size_t shared_bytes, const Options& options);

// Called in a fiber: does not return, and the grid ends here.
[[noreturn]] void stop();

std::string text_of(const Where& where);

// collectives.cpp: what the lanes that have come asked for. `first`: the thread of lane 0.
void perform(const Part* const* parts, int first);

}  // namespace gpu::host
