// Which instance of norm_silu_conv3x3.cu serves; units are outputs of a block.
#pragma once

#include "choice.h"

namespace swk::cuda {

constexpr int kConvThreads = 128;
constexpr int kPatchRows = 8, kPatchColumns = 16;  // pixels of a block
constexpr int kConvChunk = 32;                     // input channels at once
constexpr int kConvPitch = 80;                     // bytes from a row of a chunk to the next: no two of 8 share a bank
constexpr int kHaloRows = (kPatchRows + 2) * (kPatchColumns + 2);

constexpr int conv_stages(int outputs) { return outputs <= 64 ? 3 : 2; }
constexpr int conv_shared_bytes(int outputs) {
    return kConvPitch * (2 * kHaloRows + conv_stages(outputs) * 3 * outputs);
}

// `patches` of the batch of images. Cost: what the busiest multiprocessor does, in clocks for a tap of a block: reads of
// shared memory for 32 and 64 outputs, products for 128.
inline Choice choose_conv3x3(bool bfloat16, int outputs, int patches, int multiprocessors) {
    constexpr int kOutputs[] = {32, 64, 128}, kCost[] = {96, 128, 206};
    constexpr const char* kNames[][2] = {{"norm_silu_conv3x3_n32_f16", "norm_silu_conv3x3_n32_bf16"},
                                         {"norm_silu_conv3x3_n64_f16", "norm_silu_conv3x3_n64_bf16"},
                                         {"norm_silu_conv3x3_n128_f16", "norm_silu_conv3x3_n128_bf16"}};
    if (outputs < 1 || patches < 1 || multiprocessors < 1) return {};
    int best = 0;
    long long least = 0;
    for (int i = 0; i < 3; ++i) {
        const long long blocks = static_cast<long long>(patches) * ((outputs + kOutputs[i] - 1) / kOutputs[i]);
        const long long cost = (blocks + multiprocessors - 1) / multiprocessors * kCost[i];
        if (i == 0 || cost < least) best = i, least = cost;
    }
    return {kNames[best][bfloat16], kConvThreads, conv_shared_bytes(kOutputs[best]), kOutputs[best]};
}

}  // namespace swk::cuda
