// Sums over tokens that make the gradients of weights.
//
//   product  sum[o][i] += sum over t of left[o][t] right[i][t]      gradient of a 1x1 convolution's weight
//   rows     sum[o]    += sum over t of left[o][t]                  gradient of its bias
//
// left is in panels [panel][row][kPanel]; right is turned to [token][column] first, because the vectors of a register
// tile run over columns while tokens are summed. A turned map serves all products with it. A tile of the sum is loaded
// and stored once for all tokens of a window: for the 64 tokens of a window of 8, 48 memory accesses beside 1536
// multiply-adds (AVX-512). MACs: rows * columns * tokens.
#pragma once

#include "../base/tile.h"

namespace swk::SWK_ISA {

// Columns of a turned map and of the sums of products: a multiple of the width of a tile.
static inline int64_t turned_columns(int64_t channels) { return filled(channels, kPanel); }

// to [token][turned_columns] = panels [panel][channel][kPanel] of `from`; zeros in the columns after the last channel.
static inline void turn_panels(const float* from, int64_t channels, int64_t panels, float* to) {
    const int64_t columns = turned_columns(channels);
    for (int64_t panel = 0; panel < panels; ++panel, from += channels * kPanel, to += columns * kPanel) {
        for (int64_t c = 0; c < columns; c += kLanes) {
            for (int64_t token = 0; token < kPanel; token += kLanes) {
                F32 block[kLanes];
                for (int i = 0; i < kLanes; ++i) {
                    block[i] = c + i < channels ? load(from + (c + i) * kPanel + token) : F32{};
                }
                transpose(block);
                for (int i = 0; i < kLanes; ++i) store(to + (token + i) * columns + c, block[i]);
            }
        }
    }
}

// sum [rows][columns] += left times right. `left` starts at its first row and has panel_floats between panels; rows of
// its last tile after the last row are read, but not used. `right` is a turned map with `columns` columns.
static inline void add_product(const float* left, int64_t rows, int64_t panel_floats, const float* right,
                               int64_t columns, int64_t panels, float* sum) {
    for (int64_t row = 0; row < rows; row += kTileRows) {
        for (int64_t column = 0; column < columns; column += kPanel) {
            Tile tile{};
            for (int64_t panel = 0; panel < panels; ++panel) {
                const float* a = left + panel * panel_floats + row * kPanel;
                const float* b = right + panel * kPanel * columns + column;
                for (int64_t token = 0; token < kPanel; ++token, b += columns) {
                    F32 vector[kPanelVectors];
                    for (int v = 0; v < kPanelVectors; ++v) vector[v] = load(b + v * kLanes);
#pragma GCC unroll 16
                    for (int r = 0; r < kTileRows; ++r) {
                        const F32 value = broadcast(a[r * kPanel + token]);
                        for (int v = 0; v < kPanelVectors; ++v) {
                            tile.row[r][v] = madd(value, vector[v], tile.row[r][v]);
                        }
                    }
                }
            }
            add_tile(tile, sum + row * columns + column, columns, rows - row);
        }
    }
}

// sum [rows][kLanes] += the rows of `left`; lanes are added by the caller.
static inline void add_rows(const float* left, int64_t rows, int64_t panel_floats, int64_t panels, float* sum) {
    for (int64_t row = 0; row < rows; ++row) {
        F32 total = {};
        for (int64_t panel = 0; panel < panels; ++panel) {
            const float* from = left + panel * panel_floats + row * kPanel;
            for (int v = 0; v < kPanelVectors; ++v) total += load(from + v * kLanes);
        }
        store(sum + row * kLanes, load(sum + row * kLanes) + total);
    }
}

}  // namespace swk::SWK_ISA
