// The matrix product of the kernels: a register tile of kTileRows rows by kPanel tokens.
//
// Memory layout of activations: panels of kPanel tokens, [panel][channel][kPanel], tokens along the vector. Any number
// of channels works without a remainder loop (a row is a broadcast), reductions over channels or keys are vector sums,
// and softmax and norms need no operations across lanes.
#pragma once

#include "simd.h"

namespace swk::SWK_ISA {

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

struct Tile {
    F32 row[kTileRows][kPanelVectors];
};

// tile[r][t] = sum over k of a[k * a_step + r] * b[k * b_step + t], summed in the order of k.
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

// Calls finish(tile, first row, panel) for every tile of `weight` (TiledMatrix, `rows` rows) times the panels of `b`.
// A tile of weights, at most 18 KiB, stays in L1 while it is multiplied by all panels.
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
