// Convolution of a normalised image: GroupNorm and SiLU are applied while Winograd's inputs are loaded. See
// norm_silu_conv3x3.cpp.
#pragma once

#include "group_statistics.h"
#include "winograd.h"

namespace swk::SWK_ISA {

struct NormedSource {
    static constexpr int kAxis = 4;

    const Conv3x3& conv;
    const float* folded;  // result of norm_of_rows

    // silu(norm(x)) of `lanes` channels starting at `channel`, for all inputs of a block; 0 outside the image.
    void activate(const Block& block, int64_t channel, int lanes, F32 (&to)[kInputHigh][kInputWide]) const {
        const int64_t channels = conv.channels;
        const float* norm = folded + 3 * block.image * channels + channel;
        const F32 mean = load(norm, 1, lanes), factor = load(norm + channels, 1, lanes);
        const F32 offset = load(norm + 2 * channels, 1, lanes);
        const float* image = conv.x + block.image * conv.x_strides.batch + channel;
        for (int y = 0; y < 2 * block.high + 2; ++y) {
            const int64_t row = block.top + y - 1;
            for (int x = 0; x < 2 * block.wide + 2; ++x) {
                const int64_t column = block.left + x - 1;
                if (row < 0 || row >= conv.height || column < 0 || column >= conv.width) {
                    to[y][x] = F32{};
                    continue;
                }
                const F32 value = load(image + row * conv.x_strides.row + column * conv.x_strides.column, 1, lanes);
                to[y][x] = silu(madd(value - mean, factor, offset));
            }
        }
    }

    void transform(const Block& block, int64_t slice, float* transformed) const {
        float* to_slice = transformed + slice * kBlockTiles * kSlice;
        for (int64_t c = 0; c < kSlice && slice * kSlice + c < conv.channels; c += kLanes) {
            const int64_t channel = slice * kSlice + c;
            F32 input[kInputHigh][kInputWide];
            activate(block, channel, left_lanes(conv.channels - channel), input);
            for (int tile = 0; tile < block.tiles(); ++tile) {
                const int y = 2 * (tile / block.wide), x = 2 * (tile % block.wide);
                F32 d[4][4];
                for (int i = 0; i < 4; ++i) {
                    for (int j = 0; j < 4; ++j) d[i][j] = input[y + i][x + j];
                }
                store_transformed(d, point_floats(conv.channels), to_slice + tile * kSlice + c);
            }
        }
    }
};

static inline void normed_convolution(const GroupNormInput& norm, const Conv3x3& conv) {
    const NormedSource source{conv, norm_of_rows(norm)};
    Winograd<NormedSource>(conv, source).run();
}

}  // namespace swk::SWK_ISA
