// Arguments of ops that begin with a GroupNorm (Wu and He 2018): statistics over channels / groups channels by `pixels`
// pixels, then for each image and channel
//
//   v = ((x - mean) / sqrt(variance + eps) weight + bias) (1 + scale) + shift
//
// Tensors are [batch][channels][pixels]. Memory layout: the pixels of a channel are contiguous (planes, NCHW) or the
// channels of a pixel are (rows, channels_last).
#pragma once

#include <cstdint>

namespace swk {

// In elements; either `pixel` or `channel` is 1.
struct PlaneStrides {
    int64_t batch, channel, pixel;
};

struct GroupNormWeights {
    const float* weight;  // [channels], or nullptr for 1
    const float* bias;    // [channels], or nullptr for 0
    const float* scale;   // [batch][channels], or nullptr for 0
    const float* shift;   // [batch][channels], or nullptr for 0
};

struct GroupNormInput {
    int64_t batch, channels, pixels, groups;
    const float* x;
    PlaneStrides x_strides;
    GroupNormWeights norm;
    float eps;
    float* scratch;       // [group_norm_scratch]
    int threads;          // at most this many are used
};

// Statistics are computed per chunk, which is read twice (mean, then deviations) and stays in L1 (16 of 32 KiB), and
// merged.
constexpr int64_t kChunkFloats = 4096;

// An image in rows is divided into at most this many stripes, each a sequence of chunks with one result. More stripes
// would use more threads but take longer to merge. The number depends only on the shape, so that the result does not
// depend on the number of threads.
constexpr int64_t kStripes = 16;

// Floats of scratch, enough for both layouts: mean and M2 of every chunk (planes) or of every stripe and channel
// (rows), mean and 1 / deviation of each group, and three numbers per channel.
constexpr int64_t group_norm_scratch(int64_t batch, int64_t channels, int64_t pixels, int64_t groups) {
    const int64_t chunks = channels * ((pixels + kChunkFloats - 1) / kChunkFloats);
    const int64_t stripes = kStripes * channels;
    return batch * (2 * (chunks > stripes ? chunks : stripes) + 2 * groups + 3 * channels);
}

}  // namespace swk
