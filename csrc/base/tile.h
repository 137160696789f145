// The matrix product that all of a block's products go through: a register tile of kTileRows rows by kPanel tokens.
//
// Activations lie channel by channel with tokens along the vector, in panels of kPanel tokens: [panel][channel][kPanel].
// So any channel count works without a remainder loop (a row is a broadcast), reductions over channels or keys are plain
// vector sums, and softmax and norms never cross lanes.
#pragma once

#include "simd.h"

namespace swk::SWK_ISA {

// 2 vectors by 12 rows are 24 accumulators of the 32 registers of AVX-512 and NEON, 2 by 6 are 12 of the 16 of AVX2: one
// load feeds 1.7 (1.5) fused products where the cores do 1. 12 and 6 divide C, d and 3d of the released network.
#if !defined(SWK_PORTABLE) && (defined(__AVX512F__) || defined(__ARM_NEON))
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;

struct Tile {
    F32 row[kTileRows][kPanelVectors];
};

// tile[r][t] = sum over k of a[k * a_step + r] * b[k * b_step + t], added up in the order of k.
__attribute__((always_inline)) static inline Tile multiply(int64_t depth, const float* a, int64_t a_step,
                                                           const float* b, int64_t b_step) {
    Tile tile{};
    for (int64_t k = 0; k < depth; ++k) {
        F32 right[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
            const F32 left = broadcast(a[r]);
            for (int v = 0; v < kPanelVectors; ++v) tile.row[r][v] = madd(left, right[v], tile.row[r][v]);
        }
        a += a_step;
        b += b_step;
    }
    return tile;
}

// finish(tile, first row, panel) for every tile of the `rows` rows of `weight` (TiledMatrix) times the panels of `b`.
// A tile of weights, at most 18 KiB, stays in L1 while the panels pass.
template <class Finish>
static inline void multiply_panels(const float* weight, int64_t rows, int64_t depth, const float* b,
                                   int64_t panel_floats, int64_t panels, const Finish& finish) {
    for (int64_t row = 0; row < rows; row += kTileRows) {
        const float* a = weight + row * depth;
        for (int64_t panel = 0; panel < panels; ++panel) {
            finish(multiply(depth, a, kTileRows, b + panel * panel_floats, kPanel), row, panel);
        }
    }
}

}  // namespace swk::SWK_ISA
