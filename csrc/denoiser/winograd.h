// Winograd's F(2x2, 3x3) on blocks of tiles: input transform, products, output transform. Formulas: conv3x3.h.
//
// Vectors hold consecutive channels, so that the transforms need no shuffle: input channels in the input transform,
// output channels in the output transform. The rows of a product are tiles (broadcast), its columns kPanel output
// channels.
#pragma once

#include "../base/parallel.h"
#include "../base/tile.h"
#include "conv3x3.h"

namespace swk::SWK_ISA {

constexpr int kMostPoints = 16;  // of a transformed tile
// A block is 8 by 6 tiles, 16 x 12 outputs: 48 tiles are exactly 4 (AVX2: 8) register tiles of the product. Its 18 x 14
// inputs are 1.3 times its outputs, so norm and SiLU are computed 1.3 times per input.
constexpr int kBlockWide = 8, kBlockHigh = 6, kBlockTiles = kBlockWide * kBlockHigh;
constexpr int kInputWide = 2 * kBlockWide + 2, kInputHigh = 2 * kBlockHigh + 2;
// Channels of a transformed tile are stored in slices of this many: the distance between rows of the product is then a
// constant, and 12 rows need one address register instead of 12.
constexpr int64_t kSlice = 64;

static inline int64_t slices(int64_t channels) { return (channels + kSlice - 1) / kSlice; }

// Floats of one point of a transformed block, [slice][tile][kSlice].
static inline int64_t point_floats(int64_t channels) { return slices(channels) * kBlockTiles * kSlice; }

// Floats of a block's products with one panel, [point][tile][kPanel].
constexpr int64_t kProductFloats = int64_t{kMostPoints} * kBlockTiles * kPanel;

// The tiles of a block and the position of its first output.
struct Block {
    int64_t image, top, left;
    int high, wide;  // tiles

    int tiles() const { return high * wide; }
};

struct BlockGrid {
    int64_t tiles_high, tiles_wide, high, wide;  // `high` by `wide` blocks
    int64_t block_high;                          // rows of tiles per block, nearly equal for all blocks

    BlockGrid(int64_t height, int64_t width)
        : tiles_high((height + 1) / 2), tiles_wide((width + 1) / 2), high((tiles_high + kBlockHigh - 1) / kBlockHigh),
          wide((tiles_wide + kBlockWide - 1) / kBlockWide), block_high(high ? (tiles_high + high - 1) / high : 0) {}

    int64_t blocks() const { return high * wide; }

    Block block(int64_t index) const {
        const int64_t in_image = index % blocks();
        const int64_t row = in_image / wide * block_high, column = in_image % wide * kBlockWide;
        const int64_t down = tiles_high - row, right = tiles_wide - column;
        return {index / blocks(), 2 * row, 2 * column, static_cast<int>(down < block_high ? down : block_high),
                static_cast<int>(right < kBlockWide ? right : kBlockWide)};
    }
};

// a - c, b + c, c - b, b - d: Bt of four.
static inline void transform_four(F32& a, F32& b, F32& c, F32& d) {
    const F32 difference = c - b;
    a = a - c, d = b - d, b = b + c, c = difference;
}

// Bt d B, a point every `step` floats.
static inline void store_transformed(F32 (&d)[4][4], int64_t step, float* to) {
    for (int j = 0; j < 4; ++j) transform_four(d[0][j], d[1][j], d[2][j], d[3][j]);
    for (int i = 0; i < 4; ++i) transform_four(d[i][0], d[i][1], d[i][2], d[i][3]);
    for (int point = 0; point < 16; ++point) store(to + point * step, d[point / 4][point % 4]);
}

// Calls finish(inputs, place in `transformed`) for every tile of a block, kLanes channels of the slice at a time. Inputs
// are Side x Side pixels, 0 outside the image; of an image that is upsampled by Scale they are pixels of the small one.
template <int Side, int Scale, class Finish>
static inline void each_tile(const Conv3x3& conv, const Block& block, int64_t slice, float* transformed,
                             const Finish& finish) {
    float* to_slice = transformed + slice * kBlockTiles * kSlice;
    for (int64_t c = 0; c < kSlice && slice * kSlice + c < conv.channels; c += kLanes) {
        const int64_t channel = slice * kSlice + c;
        const int lanes = left_lanes(conv.channels - channel);
        const float* image = conv.x + block.image * conv.x_strides.batch + channel;
        const auto pixel = [&](int64_t row, int64_t column) {
            if (row < 0 || Scale * row >= conv.height || column < 0 || Scale * column >= conv.width) return F32{};
            return load(image + row * conv.x_strides.row + column * conv.x_strides.column, 1, lanes);
        };
        for (int tile = 0; tile < block.tiles(); ++tile) {
            const int64_t y = (block.top + 2 * (tile / block.wide)) / Scale;
            const int64_t x = (block.left + 2 * (tile % block.wide)) / Scale;
            F32 inputs[Side][Side];
            for (int i = 0; i < Side; ++i) {
                for (int j = 0; j < Side; ++j) inputs[i][j] = pixel(y + i - 1, x + j - 1);
            }
            finish(inputs, to_slice + tile * kSlice + c);
        }
    }
}

// kTileRows tiles times one panel at one point: tile[r][o] = sum over c of rows[c / kSlice][r][c % kSlice]
// weight[c][o].
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
static inline void multiply_block(int points, int64_t channels, int tiles, const float* transformed,
                                  const float* weight, float* products) {
    for (int point = 0; point < points; ++point) {
        for (int row = 0; row < tiles; row += kTileRows) {
            const Tile tile = multiply_tiles(channels, transformed + point * point_floats(channels) + row * kSlice,
                                             weight + point * channels * kPanel);
            float* to = products + (int64_t{point} * kBlockTiles + row) * kPanel;
            for (int r = 0; r < kTileRows; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) store(to + r * kPanel + v * kLanes, tile.row[r][v]);
            }
        }
    }
}

// At of four elements, or of three if the third is 0.
template <int Axis>
static inline void inverse(const F32 (&m)[Axis], F32& first, F32& second) {
    if constexpr (Axis == 4) {
        first = m[0] + (m[1] + m[2]);
        second = (m[1] - m[2]) - m[3];
    } else {
        first = m[0] + m[1];
        second = m[1] - m[2];
    }
}

// Stores `lanes` channels, starting at `channel`, of pixel (y, x) of the convolution's result where PixelShuffle(2) puts
// them. The weights' order is that of out: all its channels at (2y, 2x), then those at (2y, 2x + 1), and so on.
static inline void store_shuffled(const Conv3x3& conv, int64_t image, int64_t y, int64_t x, int64_t channel, int lanes,
                                  F32 value) {
    const int64_t channels = conv.out_channels / 4;
    const RowStrides& stride = conv.out_strides;
    float* out = conv.out + image * stride.batch + 2 * y * stride.row + 2 * x * stride.column;
    for (int lane = 0; lane < lanes;) {
        const int64_t corner = (channel + lane) / channels, first = (channel + lane) % channels;
        const int64_t left = channels - first;
        const int end = left < lanes - lane ? lane + static_cast<int>(left) : lanes;
        float* to = out + corner / 2 * stride.row + corner % 2 * stride.column + first;
        store(to, 1, end - lane, lane ? lanes_from(value, lane) : value);
        lane = end;
    }
}

// Stores At m A of one tile for kLanes output channels, plus bias and skip, in the image.
template <int Axis>
static inline void finish_tile(const Conv3x3& conv, int64_t image, int64_t y, int64_t x, int64_t channel, F32 bias,
                               const float* products) {
    F32 half[2][Axis];
    for (int j = 0; j < Axis; ++j) {
        F32 column[Axis];
        for (int i = 0; i < Axis; ++i) column[i] = load(products + int64_t{Axis * i + j} * kBlockTiles * kPanel);
        inverse<Axis>(column, half[0][j], half[1][j]);
    }
    const auto place = [&](const RowStrides& stride, int i, int j) {
        return image * stride.batch + (y + i) * stride.row + (x + j) * stride.column + channel;
    };
    const int lanes = left_lanes(conv.out_channels - channel);
    for (int i = 0; i < 2 && y + i < conv.height; ++i) {
        F32 pair[2];
        inverse<Axis>(half[i], pair[0], pair[1]);
        for (int j = 0; j < 2 && x + j < conv.width; ++j) {
            F32 value = pair[j] + bias;
            if (conv.shuffled) {
                store_shuffled(conv, image, y + i, x + j, channel, lanes, value);
                continue;
            }
            if (conv.skip) value += load(conv.skip + place(conv.skip_strides, i, j), 1, lanes);
            store(conv.out + place(conv.out_strides, i, j), 1, lanes, value);
        }
    }
}

template <int Axis>
static inline void finish_block(const Conv3x3& conv, const Block& block, int64_t panel, const float* products) {
    for (int v = 0; v < kPanelVectors; ++v) {
        const int64_t channel = panel * kPanel + v * kLanes;
        if (channel >= conv.out_channels) return;
        const int lanes = left_lanes(conv.out_channels - channel);
        F32 bias{};
        if (conv.bias) bias += load(conv.bias + channel, 1, lanes);
        if (conv.embedding) bias += load(conv.embedding + block.image * conv.out_channels + channel, 1, lanes);
        for (int tile = 0; tile < block.tiles(); ++tile) {
            finish_tile<Axis>(conv, block.image, block.top + 2 * (tile / block.wide),
                              block.left + 2 * (tile % block.wide), channel, bias,
                              products + tile * kPanel + v * kLanes);
        }
    }
}

static inline int64_t panels(int64_t out_channels) { return (out_channels + kPanel - 1) / kPanel; }

// Whether each worker processes whole blocks. With fewer than 4 blocks per worker, waiting for the last ones costs too
// much.
static inline bool whole_blocks(int64_t blocks, int threads) { return blocks % threads == 0 || blocks >= 4 * threads; }

// Scratch holds transformed blocks, one per worker or one per block, then the products of each worker.
static inline int64_t transformed_at_once(int64_t blocks, int threads) {
    return whole_blocks(blocks, threads) ? threads : blocks;
}

// A convolution whose transformed inputs come from `Source`:
//   Source::kAxis                                points along one side of a transformed tile
//   transform(block, slice, transformed)         writes kSlice channels of a block, starting at channel slice * kSlice
template <class Source>
class Winograd {
public:
    Winograd(const Conv3x3& conv, const Source& source)
        : conv_(conv), source_(source), grid_(conv.height, conv.width), blocks_(conv.batch * grid_.blocks()),
          block_floats_(kMostPoints * point_floats(conv.channels)),
          products_(conv.scratch + transformed_at_once(blocks_, conv.threads) * block_floats_) {}

    void run() const { whole_blocks(blocks_, conv_.threads) ? run_whole() : run_shared(); }

private:
    static constexpr int kPoints = Source::kAxis * Source::kAxis;

    float* transformed(int64_t index) const { return conv_.scratch + index * block_floats_; }

    void panel(const Block& block, int64_t panel, const float* transformed, int worker) const {
        float* products = products_ + worker * kProductFloats;
        multiply_block(kPoints, conv_.channels, block.tiles(), transformed,
                       conv_.weight + panel * kPoints * conv_.channels * kPanel, products);
        finish_block<Source::kAxis>(conv_, block, panel, products);
    }

    // Each block is processed by one worker.
    void run_whole() const {
        parallel_for(blocks_, 1, 1, conv_.threads, [&](int64_t begin, int64_t end, int worker) {
            float* to = transformed(worker);
            for (int64_t index = begin; index < end; ++index) {
                const Block block = grid_.block(index);
                for (int64_t slice = 0; slice < slices(conv_.channels); ++slice) source_.transform(block, slice, to);
                for (int64_t p = 0; p < panels(conv_.out_channels); ++p) panel(block, p, to, worker);
            }
        });
    }

    // Few blocks: workers share them, first by slices of input channels, then by panels of output channels.
    void run_shared() const {
        const int64_t count = slices(conv_.channels);
        parallel_for(blocks_ * count, 1, 1, conv_.threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) {
                source_.transform(grid_.block(i / count), i % count, transformed(i / count));
            }
        });
        // Panels outermost, so that a worker reads the weights of its panels once.
        parallel_for(panels(conv_.out_channels) * blocks_, 1, 1, conv_.threads,
                     [&](int64_t begin, int64_t end, int worker) {
            for (int64_t i = begin; i < end; ++i) {
                panel(grid_.block(i % blocks_), i / blocks_, transformed(i % blocks_), worker);
            }
        });
    }

    const Conv3x3& conv_;
    const Source& source_;
    BlockGrid grid_;
    int64_t blocks_, block_floats_;
    float* products_;
};

}  // namespace swk::SWK_ISA
