// Which instances of tail.cu serve: a block's second half, and gated_ffn alone. Units: pixels of one block.
#pragma once

#include "choice.h"

namespace swk::cuda {

// One size of tail_wide.cuh's blocks, and how many of them a multiprocessor holds.
struct TailSize {
    int rows, shared_bytes, held;
};
constexpr TailSize kTail128[] = {{64, 49152, 2}, {128, 88064, 1}};
constexpr TailSize kTail192[] = {{64, 67584, 2}, {160, 138240, 1}};
constexpr TailSize kTail256[] = {{32, 68608, 2}, {80, 130560, 1}};
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
// agrees); from 128 channels on the pixels as well (tail_wide.cuh).
constexpr Choice choose_tail(bool bfloat16, int channels, bool projects, int pixels, int multiprocessors,
                             int shared_bytes) {
#define SWK_NAME(suffix)                                              \
    (projects ? (bfloat16 ? "tail_bf16_" suffix : "tail_f16_" suffix) \
              : (bfloat16 ? "gated_ffn_bf16_" suffix : "gated_ffn_f16_" suffix))
#define SWK_SIZE(c, r) \
    if (channels == c && size.rows == r) return {SWK_NAME("c" #c "_r" #r), 256, size.shared_bytes, size.rows};
    if (channels == 24) return {SWK_NAME("c24"), 256, 9984, 256};
    if (channels == 32) return {SWK_NAME("c32"), 256, 15360, 128};
    if (channels == 48) return {SWK_NAME("c48"), 256, 22016, 256};
    if (channels == 64) return {SWK_NAME("c64"), 256, 28672, 128};
    if (channels == 96) return {SWK_NAME("c96"), 256, 41984, 256};
    TailSize size{};
    if (channels == 128) size = best_size(kTail128, pixels, multiprocessors, shared_bytes);
    if (channels == 192) size = best_size(kTail192, pixels, multiprocessors, shared_bytes);
    if (channels == 256) size = best_size(kTail256, pixels, multiprocessors, shared_bytes);
    if (channels == 384) size = best_size(kTail384, pixels, multiprocessors, shared_bytes);
    SWK_SIZE(128, 64)
    SWK_SIZE(128, 128)
    SWK_SIZE(192, 64)
    SWK_SIZE(192, 160)
    SWK_SIZE(256, 32)
    SWK_SIZE(256, 80)
    SWK_SIZE(384, 32)
    SWK_SIZE(384, 64)
    SWK_SIZE(384, 80)
#undef SWK_SIZE
#undef SWK_NAME
    return {};
}

}  // namespace swk::cuda
