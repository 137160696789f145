// What ops that begin with a GroupNorm take of it: statistics of channels / groups channels by `pixels` pixels, then for
// each image and channel
//
//   v = ((x - mean) / sqrt(variance + eps) weight + bias) (1 + scale) + shift
//
// Tensors are [batch][channels][pixels], where either a channel's pixels are neighbours in memory (planes, NCHW) or a
// pixel's channels are (rows, channels_last).
#pragma once

#include <cstdint>

namespace swk {

// In elements; `pixel` or `channel` is 1.
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
    int threads;          // at most so many
};

// Statistics are taken of chunks that stay in L1 (16 KiB of 32) while they are read twice, mean first, and merged.
constexpr int64_t kChunkFloats = 4096;

// An image in rows is cut into so many stripes at most, each a sequence of chunks with one result. More would let more
// threads take part in the statistics, and take longer to merge; nothing but the shape decides, or the bits would not
// be the same for any thread count.
constexpr int64_t kStripes = 16;

// Floats of scratch, for either layout: mean and M2 of every chunk of planes, or of every stripe and channel of rows;
// then mean and 1 / deviation of each group, and three numbers for each channel.
constexpr int64_t group_norm_scratch(int64_t batch, int64_t channels, int64_t pixels, int64_t groups) {
    const int64_t chunks = channels * ((pixels + kChunkFloats - 1) / kChunkFloats);
    const int64_t stripes = kStripes * channels;
    return batch * (2 * (chunks > stripes ? chunks : stripes) + 2 * groups + 3 * channels);
}

}  // namespace swk
