// What was found, as sentences: one for each kind of fault and pair of source lines, with its first case and their count.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace gpu::host {

// In the order in which they are told: what is often a consequence of another one, last.
enum class Fault : int {
    pending_copy,   // the destination of a copy that was not waited for
    race,           // of two threads of a block
    race_of_blocks,
    divergence,     // lanes of a warp at different operations, or threads of a block at different barriers
    out_of_bounds,
    unknown_address,
    foreign_stack,  // another thread's local variables
    read_only,
    misaligned,
    uninitialised,
    copies_at_end,  // a thread ends before its copies have come
    never_ends,
};

enum class Touch : int { read, write, atomic };

struct Finding {
    Fault fault;
    const void* pc = nullptr;     // where the kernel is
    const void* other = nullptr;  // and where it was, for a pair
    Touch touch = Touch::read, other_touch = Touch::read;
    int thread = -1, other_thread = -1, block = 0, other_block = 0;
    std::string region{};         // name of the memory
    int64_t byte = 0, bytes = 0;  // place in it, and its size; of out_of_bounds: beyond its end, or negative, before it
    std::string text{};           // for faults that are no matter of a memory access
};

void forget_findings();
void report(const Finding& finding);
int count_findings();
std::string sentences();

// "attention.cuh:120" for places in this library, asked of addr2line; the innermost line that is the kernel's own.
// Call it once for all places that are wanted: each call starts a process.
std::string source_line(const void* pc);
void prefetch_source_lines(const void* const* places, int count);

}  // namespace gpu::host
