// Products of pixels (rows of channels) and a matrix, with the register tile of tile.h: a 1x1 convolution.
#pragma once

#include "../base/tile.h"

namespace swk::SWK_ISA {

// kTileRows pixels by one panel of output channels. If fewer pixels are left, the remaining rows repeat the last one.
static inline Tile multiply_pixels(const float* from, int64_t stride, int64_t left, int64_t channels, const float* weight) {
    const float* rows[kTileRows];
    for (int r = 0; r < kTileRows; ++r) rows[r] = from + (r < left ? r : left - 1) * stride;
    Tile tile{};
    for (int64_t c = 0; c < channels; ++c, weight += kPanel) {
        F32 right[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) right[v] = load(weight + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
            const F32 value = broadcast(rows[r][c]);
            for (int v = 0; v < kPanelVectors; ++v) tile.row[r][v] = madd(value, right[v], tile.row[r][v]);
        }
    }
    return tile;
}

static inline void store_pixels(const Tile& tile, int64_t left, int64_t channel, int64_t out_channels,
                                const float* bias, float* to) {
    for (int v = 0; v < kPanelVectors && channel < out_channels; ++v, channel += kLanes) {
        const int lanes = left_lanes(out_channels - channel);
        const F32 added = bias ? load(bias + channel, 1, lanes) : F32{};
        for (int64_t r = 0; r < kTileRows && r < left; ++r) {
            store(to + r * out_channels + channel, 1, lanes, tile.row[r][v] + added);
        }
    }
}

}  // namespace swk::SWK_ISA
