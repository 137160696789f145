// Which instance of norm_silu_conv3x3.cu serves; units are outputs of a block.
#pragma once

#include "choice.h"

namespace swk::cuda {

constexpr int kConvThreads = 256;
constexpr int kPatchRows = 8, kPatchColumns = 16;  // pixels of a block
constexpr int kConvChunk = 32;                     // input channels at once
constexpr int kConvPitch = 80;                     // bytes from a row of a chunk to the next: no two of 8 share a bank
constexpr int kHaloRows = (kPatchRows + 2) * (kPatchColumns + 2);

constexpr int conv_stages(int outputs) { return outputs <= 64 ? 3 : 2; }
// Two halos, the stages of weights, and the table of the norm.
constexpr int conv_shared_bytes(int outputs, int channels) {
    return kConvPitch * (2 * kHaloRows + conv_stages(outputs) * 3 * outputs) + 12 * channels;
}

// `patches` of the batch of images; multiprocessors and the shared bytes that a block may have are the device's. Cost: what
// the busiest multiprocessor does, in clocks for a tap and 32 channels of a block: products at 62 % of the rate of tensor
// cores, for 32 outputs reads of shared memory, and 40 for the halo.
inline Choice choose_conv3x3(bool bfloat16, int channels, int outputs, int patches, int multiprocessors,
                             int shared_bytes) {
    constexpr int kOutputs[] = {32, 64, 128}, kCost[] = {190, 250, 450};
    constexpr const char* kNames[][2] = {{"norm_silu_conv3x3_n32_f16", "norm_silu_conv3x3_n32_bf16"},
                                         {"norm_silu_conv3x3_n64_f16", "norm_silu_conv3x3_n64_bf16"},
                                         {"norm_silu_conv3x3_n128_f16", "norm_silu_conv3x3_n128_bf16"}};
    if (channels < 1 || outputs < 1 || patches < 1 || multiprocessors < 1) return {};
    int best = -1;
    long long least = 0;
    for (int i = 0; i < 3; ++i) {
        if (conv_shared_bytes(kOutputs[i], channels) > shared_bytes) continue;
        const long long blocks = static_cast<long long>(patches) * ((outputs + kOutputs[i] - 1) / kOutputs[i]);
        const long long cost = (blocks + multiprocessors - 1) / multiprocessors * kCost[i];
        if (best < 0 || cost < least) best = i, least = cost;
    }
    if (best < 0) return {};
    return {kNames[best][bfloat16], kConvThreads, conv_shared_bytes(kOutputs[best], channels), kOutputs[best]};
}

}  // namespace swk::cuda
