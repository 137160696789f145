// Sums over tokens that make the gradients of weights.
//
//   product  sum[o][i] += sum over t of left[o][t] right[i][t]      gradient of a 1x1 convolution's weight
//   rows     sum[o]    += sum over t of left[o][t]                  gradient of its bias
//
// left is in panels [panel][row][token]; right is turned to [token][column] first, because the vectors of a register
// tile run over columns while tokens are summed. A turned map serves all products with it. A tile of the sum is loaded
// and stored once for all tokens of a window: for the 64 tokens of a window of 8, 48 memory accesses beside 1536
// multiply-adds (AVX-512). MACs: rows * columns * tokens. Pairs of bfloat16 (Word, base/tile.h) are of two tokens.
#pragma once

#include "../base/tile.h"

namespace swk::SWK_ISA {

// Words of the tokens of a panel.
template <class Word>
inline constexpr int kPanelWords = kPanel / kDepth<Word>;

// Columns of a turned map and of the sums of products: whole vectors.
static inline int64_t turned_columns(int64_t channels) { return filled(channels, kLanes); }

// kLanes words of the tokens of one channel, from word `first` on, of a panel of factors over the channels.
static inline F32 token_words(const float* panel, int64_t channel, int64_t first) {
    return load(panel + channel * kPanel + first);
}

static inline F32 token_words(const Pair* panel, int64_t channel, int64_t) {  // 0: a panel is kLanes pairs
    const Pair* from = panel + channel / 2 * kPanel;
    const U32 low = load(from), high = load(from + kLanes);
    if (channel % 2) return (F32)neighbours((F32)(low & 0xffff0000u), (F32)(high & 0xffff0000u));
    return (F32)neighbours((F32)(low << 16), (F32)(high << 16));
}

// to [word of tokens][turned_columns] = panels [panel][word of channels][kPanel], `panel_words` apart; zeros in the columns
// after the last channel.
template <class Word>
static inline void turn_panels(const Word* from, int64_t channels, int64_t panel_words, int64_t panels, Word* to) {
    const int64_t columns = turned_columns(channels);
    float* out = reinterpret_cast<float*>(to);
    for (int64_t panel = 0; panel < panels; ++panel, from += panel_words, out += columns * kPanelWords<Word>) {
        for (int64_t c = 0; c < columns; c += kLanes) {
            for (int64_t word = 0; word < kPanelWords<Word>; word += kLanes) {
                F32 block[kLanes];
                for (int i = 0; i < kLanes; ++i) {
                    block[i] = c + i < channels ? token_words(from, c + i, word) : F32{};
                }
                transpose(block);
                for (int i = 0; i < kLanes; ++i) store(out + (word + i) * columns + c, block[i]);
            }
        }
    }
}

// kTileRows rows by `Vectors` vectors of columns of `add_product`.
template <int Vectors, class Word>
__attribute__((always_inline)) static inline void add_product_tile(const Word* left, int64_t panel_words,
                                                                   const Word* right, int64_t columns, int64_t panels,
                                                                   float* sum, int64_t rows) {
    F32 tile[kTileRows][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) tile[r][v] = F32{};
    }
    for (int64_t panel = 0; panel < panels; ++panel, left += panel_words) {
        for (int64_t word = 0; word < kPanelWords<Word>; ++word, right += columns) {
            decltype(load(right)) vector[Vectors];
            for (int v = 0; v < Vectors; ++v) vector[v] = load(right + v * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r) {
                const auto value = broadcast(left[r * kPanelWords<Word> + word]);
                for (int v = 0; v < Vectors; ++v) tile[r][v] = madd(value, vector[v], tile[r][v]);
            }
        }
    }
    for (int r = 0; r < kTileRows && r < rows; ++r) {
        for (int v = 0; v < Vectors; ++v) {
            float* at = sum + r * columns + v * kLanes;
            store(at, load(at) + tile[r][v]);
        }
    }
}

// sum [rows][columns] += left times right. `left` starts at its first row and has panel_words between panels; rows of
// its last tile after the last row are read, but not used. `right` is a turned map with `columns` columns.
template <class Word>
static inline void add_product(const Word* left, int64_t rows, int64_t panel_words, const Word* right, int64_t columns,
                               int64_t panels, float* sum) {
    for (int64_t row = 0; row < rows; row += kTileRows) {
        const Word* a = left + row * kPanelWords<Word>;
        int64_t column = 0;
        for (; column + kPanel <= columns; column += kPanel) {
            add_product_tile<kPanelVectors>(a, panel_words, right + column, columns, panels,
                                            sum + row * columns + column, rows - row);
        }
        if (column < columns) {
            add_product_tile<1>(a, panel_words, right + column, columns, panels, sum + row * columns + column,
                                rows - row);
        }
    }
}

// sum [rows][kLanes] += the rows of `left` [panel][row][kPanel]; lanes are added by the caller.
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
