// Winograd's F(2x2, 3x3) on blocks of tiles: input transform, 16 products, output transform. Formulas stand in
// ../ops/norm_silu_conv3x3.h.
//
// Vectors run along channels, so the transforms need no shuffle: along input channels on the way in, along output
// channels on the way out. A product's rows are tiles, read by broadcast; its panel is kPanel output channels.
#pragma once

#include "../ops/norm_silu_conv3x3.h"
#include "group_norm.h"
#include "tile.h"

namespace swk::SWK_ISA {

constexpr int kPoints = 16;  // of a transformed tile
// A block is 8 by 6 tiles, 16 x 12 outputs: 48 tiles are 4 (AVX2: 8) row tiles of the product without remainder, and its
// 18 x 14 inputs are 1.3 times its outputs, which is how often an input is normed and goes through SiLU.
constexpr int kBlockWide = 8, kBlockHigh = 6, kBlockTiles = kBlockWide * kBlockHigh;
constexpr int kInputWide = 2 * kBlockWide + 2, kInputHigh = 2 * kBlockHigh + 2;
// Channels of a transformed tile stand together in slices of so many, because a row of the product is then at a distance
// that the compiler knows: 12 rows need one address register, not 12.
constexpr int64_t kSlice = 64;

static inline int64_t slices(int64_t channels) { return (channels + kSlice - 1) / kSlice; }

// Floats of a transformed block, [point][slice][tile][kSlice].
static inline int64_t transformed_floats(int64_t channels) { return kPoints * slices(channels) * kBlockTiles * kSlice; }

// Floats of a block's products with one panel, [point][tile][kPanel].
constexpr int64_t kProductFloats = int64_t{kPoints} * kBlockTiles * kPanel;

// Which tiles a block has, and where its first output lies.
struct Block {
    int64_t image, top, left;
    int high, wide;  // tiles

    int tiles() const { return high * wide; }
};

struct BlockGrid {
    int64_t tiles_high, tiles_wide, high, wide;  // `high` by `wide` blocks

    BlockGrid(int64_t height, int64_t width)
        : tiles_high((height + 1) / 2), tiles_wide((width + 1) / 2), high((tiles_high + kBlockHigh - 1) / kBlockHigh),
          wide((tiles_wide + kBlockWide - 1) / kBlockWide) {}

    int64_t blocks() const { return high * wide; }

    Block block(int64_t index) const {
        const int64_t in_image = index % blocks(), row = in_image / wide * kBlockHigh, column = in_image % wide * kBlockWide;
        const int64_t down = tiles_high - row, right = tiles_wide - column;
        return {index / blocks(), 2 * row, 2 * column, static_cast<int>(down < kBlockHigh ? down : kBlockHigh),
                static_cast<int>(right < kBlockWide ? right : kBlockWide)};
    }
};

// a - c, b + c, c - b, b - d: Bt of four.
static inline void transform_four(F32& a, F32& b, F32& c, F32& d) {
    const F32 difference = c - b;
    a = a - c, d = b - d, b = b + c, c = difference;
}

// silu(norm(x)) of kLanes channels (or `lanes`) from `channel` on, of the inputs under a block; 0 outside the image.
static inline void activate(const NormSiluConv3x3Args& args, const float* folded, const Block& block, int64_t channel,
                            int lanes, F32 (&to)[kInputHigh][kInputWide]) {
    const int64_t channels = args.input.channels;
    const float* norm = folded + 3 * block.image * channels + channel;
    const F32 mean = load(norm, 1, lanes), factor = load(norm + channels, 1, lanes);
    const F32 offset = load(norm + 2 * channels, 1, lanes);
    const float* image = args.input.x + block.image * args.x_strides.batch + channel;
    for (int y = 0; y < 2 * block.high + 2; ++y) {
        const int64_t row = block.top + y - 1;
        for (int x = 0; x < 2 * block.wide + 2; ++x) {
            const int64_t column = block.left + x - 1;
            if (row < 0 || row >= args.height || column < 0 || column >= args.width) {
                to[y][x] = F32{};
                continue;
            }
            const F32 value = load(image + row * args.x_strides.row + column * args.x_strides.column, 1, lanes);
            to[y][x] = silu(madd(value - mean, factor, offset));
        }
    }
}

// The transformed inputs of a block, for channels first .. first + kSlice - 1.
static inline void transform_slice(const NormSiluConv3x3Args& args, const float* folded, const Block& block,
                                   int64_t slice, float* transformed) {
    const int64_t channels = args.input.channels, point_floats = slices(channels) * kBlockTiles * kSlice;
    float* to_slice = transformed + slice * kBlockTiles * kSlice;
    for (int64_t c = 0; c < kSlice && slice * kSlice + c < channels; c += kLanes) {
        const int64_t channel = slice * kSlice + c;
        F32 input[kInputHigh][kInputWide];
        activate(args, folded, block, channel, left_lanes(channels - channel), input);
        for (int y = 0; y < block.high; ++y) {
            for (int x = 0; x < block.wide; ++x) {
                F32 d[4][4];
                for (int i = 0; i < 4; ++i) {
                    for (int j = 0; j < 4; ++j) d[i][j] = input[2 * y + i][2 * x + j];
                }
                for (int j = 0; j < 4; ++j) transform_four(d[0][j], d[1][j], d[2][j], d[3][j]);
                for (int i = 0; i < 4; ++i) transform_four(d[i][0], d[i][1], d[i][2], d[i][3]);
                float* to = to_slice + (y * block.wide + x) * kSlice + c;
                for (int point = 0; point < kPoints; ++point) {
                    store(to + point * point_floats, d[point / 4][point % 4]);
                }
            }
        }
    }
}

// kTileRows tiles times one panel at one point: tile[r][o] = sum over c of rows[c / kSlice][r][c % kSlice] weight[c][o].
__attribute__((always_inline)) static inline Tile multiply_tiles(int64_t channels, const float* rows,
                                                                 const float* weight) {
    Tile tile{};
    for (int64_t left = channels; left > 0; left -= kSlice, rows += kBlockTiles * kSlice) {
        const int64_t depth = left < kSlice ? left : kSlice;
        for (int64_t c = 0; c < depth; ++c) {
            F32 right[kPanelVectors];
            for (int v = 0; v < kPanelVectors; ++v) right[v] = load(weight + v * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r) {
                const F32 value = broadcast(rows[r * kSlice + c]);
                for (int v = 0; v < kPanelVectors; ++v) tile.row[r][v] = madd(value, right[v], tile.row[r][v]);
            }
            weight += kPanel;
        }
    }
    return tile;
}

// A block's products with one panel of weights [point][channel][kPanel].
static inline void multiply_block(int64_t channels, int tiles, const float* transformed, const float* weight,
                                  float* products) {
    const int64_t point_floats = slices(channels) * kBlockTiles * kSlice;
    for (int point = 0; point < kPoints; ++point) {
        for (int row = 0; row < tiles; row += kTileRows) {
            const Tile tile = multiply_tiles(channels, transformed + point * point_floats + row * kSlice,
                                             weight + point * channels * kPanel);
            float* to = products + (int64_t{point} * kBlockTiles + row) * kPanel;
            for (int r = 0; r < kTileRows; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) store(to + r * kPanel + v * kLanes, tile.row[r][v]);
            }
        }
    }
}

// At m A of one tile and kLanes output channels, with bias, embedding and skip, to the image.
static inline void finish_tile(const NormSiluConv3x3Args& args, const Block& block, int64_t y, int64_t x,
                               int64_t channel, F32 bias, const float* products) {
    F32 half[2][4];
    for (int j = 0; j < 4; ++j) {
        const auto at = [&](int i) { return load(products + int64_t{4 * i + j} * kBlockTiles * kPanel); };
        const F32 middle = at(1) + at(2);
        half[0][j] = at(0) + middle;
        half[1][j] = (at(1) - at(2)) - at(3);
    }
    const int lanes = left_lanes(args.out_channels - channel);
    for (int i = 0; i < 2 && y + i < args.height; ++i) {
        const F32* h = half[i];
        const F32 pair[2] = {(h[0] + (h[1] + h[2])) + bias, ((h[1] - h[2]) - h[3]) + bias};
        for (int j = 0; j < 2 && x + j < args.width; ++j) {
            F32 value = pair[j];
            if (args.skip) {
                const RowStrides& stride = args.skip_strides;
                const int64_t at = block.image * stride.batch + (y + i) * stride.row + (x + j) * stride.column + channel;
                value += load(args.skip + at, 1, lanes);
            }
            const RowStrides& stride = args.out_strides;
            const int64_t at = block.image * stride.batch + (y + i) * stride.row + (x + j) * stride.column + channel;
            store(args.out + at, 1, lanes, value);
        }
    }
}

static inline void finish_block(const NormSiluConv3x3Args& args, const Block& block, int64_t panel,
                                const float* products) {
    for (int v = 0; v < kPanelVectors; ++v) {
        const int64_t channel = panel * kPanel + v * kLanes;
        if (channel >= args.out_channels) return;
        const int lanes = left_lanes(args.out_channels - channel);
        F32 bias{};
        if (args.bias) bias += load(args.bias + channel, 1, lanes);
        if (args.embedding) bias += load(args.embedding + block.image * args.out_channels + channel, 1, lanes);
        for (int tile = 0; tile < block.tiles(); ++tile) {
            finish_tile(args, block, block.top + 2 * (tile / block.wide), block.left + 2 * (tile % block.wide), channel,
                        bias, products + tile * kPanel + v * kLanes);
        }
    }
}

}  // namespace swk::SWK_ISA
