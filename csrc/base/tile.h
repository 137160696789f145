// The matrix product of the kernels: a register tile of kTileRows rows by kPanel tokens.
//
// Memory layout of activations: panels of kPanel tokens, [panel][channel][kPanel], tokens along the vector. Any number
// of channels works without a remainder loop (a row is a broadcast), reductions over channels or keys are vector sums,
// and softmax and norms need no operations across lanes.
#pragma once

#include "simd.h"

namespace swk::SWK_ISA {

// `count` rounded up to whole units.
constexpr int64_t filled(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// 2 vectors by 12 rows take 24 of the 32 registers of AVX-512 and NEON, 2 by 6 take 12 of the 16 of AVX2. Per load
// there are 1.7 (AVX2: 1.5) multiply-adds, and the cores sustain one load per multiply-add. 12 and 6 divide C, d and 3d
// of the released network.
#if !defined(SWK_PORTABLE) && (defined(__AVX512F__) || defined(__ARM_NEON))
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;

// Loops over its rows have the constant bound kTileRows, with a further condition where fewer are valid: without it the
// compiler does not unroll them and keeps the tile in memory, in the product's loop, too.
struct Tile {
    F32 row[kTileRows][kPanelVectors];
};

// The first `rows` rows of a tile to rows `step` apart.
static inline void store_tile(const Tile& tile, float* to, int64_t step, int64_t rows) {
    for (int r = 0; r < kTileRows && r < rows; ++r) {
        for (int v = 0; v < kPanelVectors; ++v) store(to + r * step + v * kLanes, tile.row[r][v]);
    }
}

// The same, added to what is there.
static inline void add_tile(const Tile& tile, float* to, int64_t step, int64_t rows) {
    for (int r = 0; r < kTileRows && r < rows; ++r) {
        for (int v = 0; v < kPanelVectors; ++v) {
            float* at = to + r * step + v * kLanes;
            store(at, load(at) + tile.row[r][v]);
        }
    }
}

// Factors of a product lie in words of four bytes: Word is float, or Pair for two bfloat16 that are neighbours along
// the depth. The depth of a product of pairs is half as many words; an odd depth ends with a zero.
//
// SEAM(amx, bfmmla): Intel's AMX multiplies tiles of such pairs (tdpbf16ps: 16 rows of 16 pairs by 16 columns), Arm's
// BFMMLA blocks of 2x4 by 4x2. Each would be another `multiply` below, with another kTileRows, kPanel and order of
// words: those of weights come from backends/cpu/packing.py, those of activations from `store_depth`. The body would be
// one more entry beside avx512bf16 in CMakeLists.txt and dispatch/dispatch.cpp.
template <class Word>
inline constexpr int kDepth = 1;
template <>
inline constexpr int kDepth<Pair> = 2;

template <class Word>
constexpr int64_t words(int64_t depth) {
    return (depth + kDepth<Word> - 1) / kDepth<Word>;
}

// tile[r][t] += sum over k of a[k * a_step + r] * b[k * b_step + t], summed in the order of k; `depth` in words.
template <class Word>
__attribute__((always_inline)) static inline void multiply_onto(Tile& tile, int64_t depth, const Word* a,
                                                                int64_t a_step, const Word* b, int64_t b_step) {
    for (int64_t k = 0; k < depth; ++k) {
        decltype(load(b)) right[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
            const auto left = broadcast(a[r]);
            for (int v = 0; v < kPanelVectors; ++v) tile.row[r][v] = madd(left, right[v], tile.row[r][v]);
        }
        a += a_step;
        b += b_step;
    }
}

// The same from 0.
template <class Word>
__attribute__((always_inline)) static inline Tile multiply(int64_t depth, const Word* a, int64_t a_step, const Word* b,
                                                           int64_t b_step) {
    // `Tile tile{}` would zero memory and load it: 7 % of the time of products of depth 24.
    Tile tile;
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kPanelVectors; ++v) tile.row[r][v] = F32{};
    }
    multiply_onto(tile, depth, a, a_step, b, b_step);
    return tile;
}

// Calls finish(tile, first row, panel) for every tile of `weight` (TiledMatrix, `rows` rows) times the panels of `b`.
// A tile of weights, at most 18 KiB, stays in L1 while it is multiplied by all panels. `depth` in words.
template <class Word, class Finish>
static inline void multiply_panels(const Word* weight, int64_t rows, int64_t depth, const Word* b, int64_t panel_words,
                                   int64_t panels, const Finish& finish) {
    for (int64_t row = 0; row < rows; row += kTileRows) {
        const Word* a = weight + row * depth;
        for (int64_t panel = 0; panel < panels; ++panel) {
            finish(multiply(depth, a, kTileRows, b + panel * panel_words, kPanel), row, panel);
        }
    }
}

// Stores one vector of tokens of channels first .. first + Rows - 1 as factors along the depth: [word][step].
template <int Rows>
static inline void store_depth(float* to, int64_t step, int64_t first, const F32 (&rows)[Rows]) {
    for (int r = 0; r < Rows; ++r) store(to + (first + r) * step, rows[r]);
}

// With an odd number of rows, calls must go up from channel 0: a second factor is added to the word of the first.
template <int Rows>
static inline void store_depth(Pair* to, int64_t step, int64_t first, const F32 (&rows)[Rows]) {
    for (int r = 0; r < Rows; r += 2 - Rows % 2) {
        Pair* word = to + (first + r) / 2 * step;
        if constexpr (Rows % 2 == 0) {  // then `first` is even, too
            store(word, paired(rows[r], rows[r + 1]));
        } else {
            store(word, (first + r) % 2 ? load(word) | rounded(rows[r]) << 16 : rounded(rows[r]));
        }
    }
}

// Panels [channel][kPanel] as factors of a product over the channels, [word][kPanel]: what is there, or pairs in `to`,
// which may be the same memory.
static inline const float* channel_factors(const float* from, int64_t, float*) { return from; }

static inline const Pair* channel_factors(const float* from, int64_t channels, Pair* to) {
    for (int64_t c = 0; c < channels; c += 2) {
        for (int lane = 0; lane < kPanel; lane += kLanes) {
            const F32 first = load(from + c * kPanel + lane);
            const F32 second = c + 1 < channels ? load(from + (c + 1) * kPanel + lane) : F32{};
            store(to + c / 2 * kPanel + lane, paired(first, second));
        }
    }
    return to;
}

// A row of kPanel tokens as factors of a product over the tokens.
static inline void store_tokens(float* to, const F32 (&row)[kPanelVectors]) {
    for (int v = 0; v < kPanelVectors; ++v) store(to + v * kLanes, row[v]);
}

static inline void store_tokens(Pair* to, const F32 (&row)[kPanelVectors]) { store(to, neighbours(row[0], row[1])); }

// Rows of kPanel tokens as factors of a product over the tokens, [row][word]: what is there, or pairs in `to`.
static inline const float* token_factors(const float* from, int64_t, float*) { return from; }

static inline const Pair* token_factors(const float* from, int64_t rows, Pair* to) {
    for (int64_t r = 0; r < rows; ++r, from += kPanel) {
        store_tokens(to + r * kLanes, {load(from), load(from + kLanes)});
    }
    return to;
}

}  // namespace swk::SWK_ISA
