// Which instances of group_norm.cu serve. Units of the statistics and of the result: pixels of one block, a run.
#pragma once

#include "choice.h"

namespace swk::cuda {

constexpr int kNormThreads = 256, kMostNormed = 8 * kNormThreads;

// Pixels of a run: at least 8 KB of x, so that a block has more to do than to start.
inline int norm_run(int channels) {
    int run = 64;
    while (run * channels < 8192 && run < 1024) run *= 2;
    return run;
}

inline Choice choose_group_norm_statistics(bool bfloat16, int channels) {
    if (channels % 8 || channels < 8 || channels > kMostNormed) return {};
    const int rows = kNormThreads / (channels / 8);
    return {bfloat16 ? "group_norm_statistics_bf16" : "group_norm_statistics_f16", kNormThreads, rows * channels * 8,
            norm_run(channels)};
}

inline Choice choose_group_norm_table(bool bfloat16) {
    return {bfloat16 ? "group_norm_table_bf16" : "group_norm_table_f16", kNormThreads, kNormThreads / 32 * 4, 1};
}

inline Choice choose_group_norm_apply(bool bfloat16, int channels) {
    if (channels % 8 || channels < 8 || channels > kMostNormed) return {};
    return {bfloat16 ? "group_norm_apply_bf16" : "group_norm_apply_f16", kNormThreads, 0, norm_run(channels)};
}

}  // namespace swk::cuda
