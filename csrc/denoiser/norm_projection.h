// norm_projection: out[b][pixel][o] = sum over c of weight[o][c] norm(x)[b][c][pixel] + bias[o]. Norm: group_norm.h.
#pragma once

#include "group_norm.h"

namespace swk {

// Pixels that are normalised together and then multiplied by all panels of weights: 4 (AVX2: 8) tiles of the product.
constexpr int64_t kNormedPixels = 48;
// Channels of a normalised pixel are stored in slices of this many.
constexpr int64_t kNormedSlice = 64;

// Floats of scratch for each thread.
constexpr int64_t normed_floats(int64_t channels) {
    return (channels + kNormedSlice - 1) / kNormedSlice * kNormedSlice * kNormedPixels;
}

struct NormProjectionArgs {
    GroupNormInput norm;  // x in channels_last, rows of pixels contiguous
    int64_t out_channels;
    const float* weight;  // [panel of out channels][channel][panel width], zeros after out_channels
    const float* bias;    // [out_channels], or nullptr
    float* out;           // [batch][pixels][out_channels]
    float* scratch;       // [threads][normed_floats]
};

}  // namespace swk
