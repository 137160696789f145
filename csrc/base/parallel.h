// Multithreading. parallel.cpp explains which threads are used.
#pragma once

#include <cstdint>

namespace swk {

// Calls body(worker, team, context) once for each worker of 0 .. team-1, in parallel, and returns when all are done.
// 1 <= team <= threads; the team is smaller if the runtime has fewer threads, for example inside a parallel region.
void run_team(int threads, void (*body)(int worker, int team, void* context), void* context);

// The source of run_team's threads: "openmp" (the runtime that torch has loaded) or "own".
const char* thread_source();

// Uses the package's own threads from now on (true), or torch's if they are found (false). For tests and benches.
void use_own_threads(bool own);

// Calls body(begin, end, worker) on consecutive ranges that cover 0 .. count-1, one range per worker, with at least
// `grain` items per worker. Ranges begin at multiples of `align`. `worker` < threads is the index of the worker's
// scratch memory. Results must not depend on the boundaries of the ranges.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int64_t align, int threads, const Body& body) {
    if (count <= 0) return;
    const int64_t useful = (count + grain - 1) / grain;
    if (useful < threads) threads = static_cast<int>(useful);
    if (threads <= 1) return body(int64_t{0}, count, 0);

    struct Loop {
        const Body& body;
        int64_t count, align;
    } loop{body, count, align};

    run_team(threads, [](int worker, int team, void* context) {
        const Loop& loop = *static_cast<const Loop*>(context);
        const int64_t blocks = (loop.count + loop.align - 1) / loop.align;
        const int64_t begin = blocks * worker / team * loop.align;
        int64_t end = blocks * (worker + 1) / team * loop.align;
        if (end > loop.count) end = loop.count;
        if (begin < end) loop.body(begin, end, worker);
    }, &loop);
}

}  // namespace swk
