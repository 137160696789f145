// Statistics of a GroupNorm, the factor and offset per channel that follow from them, and SiLU.
#pragma once

#include "../base/parallel.h"
#include "group_norm.h"
#include "moments.h"

namespace swk::SWK_ISA {

constexpr int64_t kGrain = 8192;  // elements per worker at least: 10 us at 4 to 8 cycles each; waking a thread takes 2

// v sigmoid(v). The argument of the exponential is at most 88; for v < -88 the result is about 1e-38 v.
static inline F32 silu(F32 v) { return v / (exponential(-maximum(broadcast(-88.0f), v)) + 1.0f); }

// Every element of a channel of an image becomes (x - mean) * factor + offset.
struct Channel {
    float mean, factor, offset;
};

static inline Channel channel_of(const GroupNormInput& input, int64_t b, int64_t c, const float* group) {
    const GroupNormWeights& norm = input.norm;
    const int64_t image = b * input.channels + c;
    const float keep = norm.scale ? 1.0f + norm.scale[image] : 1.0f;
    const float bias = norm.bias ? norm.bias[c] * keep : 0.0f;
    return {group[0], (norm.weight ? group[1] * norm.weight[c] : group[1]) * keep,
            norm.shift ? bias + norm.shift[image] : bias};
}

// group[0] = mean, group[1] = 1 / sqrt(variance + eps).
static inline void finish_group(const Moments& moments, float eps, float* group) {
    group[0] = static_cast<float>(moments.mean);
    group[1] = static_cast<float>(1.0 / __builtin_sqrt(moments.m2 / moments.count + static_cast<double>(eps)));
}

// Statistics of pixels first .. last - 1 of image b: mean and m2, [channels].
static inline void stripe_moments(const GroupNormInput& input, int64_t b, int64_t first, int64_t last, float* mean,
                                  float* m2) {
    const int64_t channels = input.channels, stride = input.x_strides.pixel;
    const int64_t most = channels < kChunkFloats ? kChunkFloats / channels : 1;
    for (int64_t row = first; row < last; row += most) {
        const int64_t rows = last - row < most ? last - row : most, count = row - first;
        const float* from = input.x + b * input.x_strides.batch + row * stride;
        int64_t c = 0;
        for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
            merge_rows<4>(from + c, stride, rows, kLanes, count, mean + c, m2 + c);
        }
        for (; c < channels; c += kLanes) {
            const int lanes = channels - c < kLanes ? static_cast<int>(channels - c) : kLanes;
            merge_rows<1>(from + c, stride, rows, lanes, count, mean + c, m2 + c);
        }
    }
}

// Computes folded [mean, factor, offset][channels] and groups [group][mean, 1 / deviation] from the moments of the
// stripes, [stripe][mean, m2][channels].
static inline void fold_rows(const GroupNormInput& input, int64_t b, int64_t stripes, const float* moments,
                             float* folded, float* groups) {
    const int64_t channels = input.channels, depth = channels / input.groups;
    for (int64_t g = 0; g < input.groups; ++g) {
        Moments total;
        for (int64_t stripe = 0; stripe < stripes; ++stripe) {
            const double rows =
                static_cast<double>(input.pixels * (stripe + 1) / stripes - input.pixels * stripe / stripes);
            const float *mean = moments + 2 * stripe * channels, *m2 = mean + channels;
            double sum = 0, squares = 0;
            for (int64_t c = g * depth; c < (g + 1) * depth; ++c) sum += mean[c];
            const double centre = sum / static_cast<double>(depth);
            for (int64_t c = g * depth; c < (g + 1) * depth; ++c) {
                squares += m2[c] + rows * (mean[c] - centre) * (mean[c] - centre);
            }
            total.merge(rows * static_cast<double>(depth), centre, squares);
        }
        float* group = groups + 2 * g;
        finish_group(total, input.eps, group);
        for (int64_t c = g * depth; c < (g + 1) * depth; ++c) {
            const Channel at = channel_of(input, b, c, group);
            folded[c] = at.mean, folded[channels + c] = at.factor, folded[2 * channels + c] = at.offset;
        }
    }
}

static inline int64_t stripes_of_image(const GroupNormInput& input) {
    const int64_t chunks = (input.pixels * input.channels + kChunkFloats - 1) / kChunkFloats;
    const int64_t most = chunks < kStripes ? chunks : kStripes;
    return most < input.pixels ? most : input.pixels;
}

// For images in rows: writes [batch][mean, factor, offset][channels] to `scratch` and returns its address; it is
// followed by [batch][groups][mean, 1 / deviation].
static inline const float* norm_of_rows(const GroupNormInput& input) {
    const int64_t channels = input.channels, pixels = input.pixels, stripes = stripes_of_image(input);
    const int64_t stripe_floats = 2 * channels, all = input.batch * stripes;
    float* folded = input.scratch + all * stripe_floats;
    float* groups = folded + 3 * input.batch * channels;
    parallel_for(all, 1 + kGrain * stripes / (pixels * channels), 1, input.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t stripe = i % stripes;
            float* mean = input.scratch + i * stripe_floats;
            stripe_moments(input, i / stripes, pixels * stripe / stripes, pixels * (stripe + 1) / stripes, mean,
                           mean + channels);
        }
    });
    for (int64_t b = 0; b < input.batch; ++b) {
        fold_rows(input, b, stripes, input.scratch + b * stripes * stripe_floats, folded + 3 * b * channels,
                  groups + 2 * b * input.groups);
    }
    return folded;
}

}  // namespace swk::SWK_ISA
