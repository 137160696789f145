#include "peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "../base/parallel.h"
#include "dispatch.h"

namespace swk {

#if defined(SWK_HAS_BFLOAT16)
void bfloat16_loop(const FmaLoopArgs& args);  // peak_bfloat16.cpp
#endif

namespace {

using Loop = void (*)(const FmaLoopArgs&);

struct Slice {
    double seconds;
    int64_t operations;
};

Slice run_slice(Loop loop, int64_t rounds, int threads) {
    struct alignas(64) Worker {
        float result;
        int64_t operations;
    };
    std::vector<Worker> workers(threads);
    const auto begin = std::chrono::steady_clock::now();
    parallel_for(threads, 1, 1, threads, [&](int64_t first, int64_t last, int) {
        for (int64_t i = first; i < last; ++i) loop({rounds, 0.5f, 1.0f, &workers[i].result, &workers[i].operations});
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    return {seconds.count(), rounds * threads * workers[0].operations};
}

double peak_of(Loop loop, int threads) {
    constexpr double kSlice = 10e-3, kTotal = 150e-3;
    int64_t rounds = 1 << 12;
    double best = 0;
    for (double spent = 0; spent < kTotal;) {
        const Slice slice = run_slice(loop, rounds, threads);
        best = std::max(best, static_cast<double>(slice.operations) / slice.seconds);
        // Slices grow until they would take kSlice at the best rate so far. Their own time is not used: a slice that
        // had to wait for a busy core takes long and computes little.
        if (static_cast<double>(slice.operations) < best * kSlice) {
            rounds *= 2;
        } else {
            spent += slice.seconds;
        }
    }
    return best * 1e-9;
}

}  // namespace

double peak_float32(int threads) { return peak_of(kernels().fma_loop, threads); }

double peak_bfloat16([[maybe_unused]] int threads) {
#if defined(SWK_HAS_BFLOAT16)
    if (kernels().bfloat16) return peak_of(&bfloat16_loop, threads);
#endif
    return 0;
}

}  // namespace swk
