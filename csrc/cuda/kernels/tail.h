// Which instances of tail.cu serve: a block's second half, and gated_ffn alone. Units: pixels of one block.
#pragma once

#include "choice.h"

namespace swk::cuda {

// One size of tail_wide.cuh's blocks, and how many of them a multiprocessor holds.
struct TailSize {
    int rows, shared_bytes, held;
};
constexpr TailSize kTail192[] = {{64, 67584, 2}, {160, 138240, 1}};
constexpr TailSize kTail384[] = {{32, 97280, 2}, {64, 163840, 1}, {80, 181760, 1}};

// The size that is done soonest: rounds of all multiprocessors times pixels that one has in a round. Of equal ones the
// largest, which reads the weights least often.
template <int kSizes>
constexpr TailSize best_size(const TailSize (&sizes)[kSizes], int pixels, int multiprocessors, int shared_bytes) {
    TailSize best{};
    long long least = 0;
    for (const TailSize& size : sizes) {
        if (size.shared_bytes > shared_bytes) continue;
        const long long blocks = (static_cast<long long>(pixels) + size.rows - 1) / size.rows;
        const int at_once = blocks <= multiprocessors ? 1 : size.held;
        const long long slots = static_cast<long long>(multiprocessors) * at_once;
        const long long cost = (blocks + slots - 1) / slots * at_once * size.rows;
        if (best.rows == 0 || cost <= least) best = size, least = cost;
    }
    return best;
}

// projects: with projection and residual before the FFN; x is an image and the input in windows then. multiprocessors
// and the shared bytes that a block may have are the device's. Shared memory: two stages of weights (tail.cuh, which
// agrees); from 192 channels on the pixels as well (tail_wide.cuh).
constexpr Choice choose_tail(bool bfloat16, int channels, bool projects, int pixels, int multiprocessors,
                             int shared_bytes) {
#define SWK_NAME(suffix)                                              \
    (projects ? (bfloat16 ? "tail_bf16_" suffix : "tail_f16_" suffix) \
              : (bfloat16 ? "gated_ffn_bf16_" suffix : "gated_ffn_f16_" suffix))
    if (channels == 24) return {SWK_NAME("c24"), 256, 9984, 256};
    if (channels == 48) return {SWK_NAME("c48"), 256, 22016, 256};
    if (channels == 96) return {SWK_NAME("c96"), 256, 41984, 256};
    if (channels == 192) {
        const TailSize size = best_size(kTail192, pixels, multiprocessors, shared_bytes);
        if (size.rows == 64) return {SWK_NAME("c192_r64"), 256, size.shared_bytes, size.rows};
        if (size.rows == 160) return {SWK_NAME("c192_r160"), 256, size.shared_bytes, size.rows};
    }
    if (channels == 384) {
        const TailSize size = best_size(kTail384, pixels, multiprocessors, shared_bytes);
        if (size.rows == 32) return {SWK_NAME("c384_r32"), 256, size.shared_bytes, size.rows};
        if (size.rows == 64) return {SWK_NAME("c384_r64"), 256, size.shared_bytes, size.rows};
        if (size.rows == 80) return {SWK_NAME("c384_r80"), 256, size.shared_bytes, size.rows};
    }
#undef SWK_NAME
    return {};
}

}  // namespace swk::cuda
