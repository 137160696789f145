// The gated FFN on panels of tokens in scratch:
//
//   x += out(x1 * x2) + bias, [x1, x2] = in(LayerNorm(x)) + bias      x [panel][channel][kPanel]
//
// 3 C hidden multiply-accumulates per token. Memory beside the weights is scratch in L1 and L2: x is read for the norm
// and updated once per chunk of hidden channels (1 to 5 chunks at the released sizes). The weights, 12 C hidden bytes,
// are read once per group of panels.
#pragma once

#include "tokens.h"

namespace swk::SWK_ISA {

constexpr int kPairs = kTileRows / 2;

// Hidden channels per chunk, at most 256: a panel of x1 * x2 then takes 32 KiB (AVX-512) and a tile of the output
// weights 12 KiB, which both stay in L1 and L2. Chunks are whole tiles and nearly equal in size.
static inline int64_t hidden_chunk(int64_t hidden) {
    const int64_t tiles = (hidden + kPairs - 1) / kPairs, most = 256 / kPairs;
    const int64_t chunks = (tiles + most - 1) / most;
    return (tiles + chunks - 1) / chunks * kPairs;
}

// x += out(x1 * x2) of norm(x) for `panels` panels x [panel][channel][kPanel].
// Scratch: normed like x; gate [panel][hidden_chunk][kPanel].
static inline void ffn_panels(const FfnWeights& ffn, int64_t channels, int64_t panels, float* x, float* normed,
                              float* gate) {
    const int64_t panel_floats = channels * kPanel, chunk = hidden_chunk(ffn.hidden), gate_floats = chunk * kPanel;
    for (int64_t p = 0; p < panels; ++p) {
        norm_panel(x + p * panel_floats, channels, ffn.norm_weight, ffn.norm_bias, normed + p * panel_floats);
    }
    for (int64_t first = 0; first < ffn.hidden; first += chunk) {
        const int64_t left = ffn.hidden - first, depth = left < chunk ? left : chunk;
        const int64_t rows = (depth + kPairs - 1) / kPairs * kTileRows;
        const float* in_bias = ffn.in.bias + 2 * first;
        multiply_panels(ffn.in.weight + 2 * first * channels, rows, channels, normed, panel_floats, panels,
                        [&](const Tile& tile, int64_t row, int64_t panel) {
            float* to = gate + panel * gate_floats + row / 2 * kPanel;
            const float* bias = in_bias + row;
            for (int r = 0; r < kPairs; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    const F32 x1 = tile.row[r][v] + broadcast(bias[r]);
                    const F32 x2 = tile.row[r + kPairs][v] + broadcast(bias[r + kPairs]);
                    store(to + r * kPanel + v * kLanes, x1 * x2);
                }
            }
        });
        for (int64_t row = 0; row < channels; row += kTileRows) {
            const float* a = ffn.out.weight + row * ffn.hidden + first * kTileRows;
            const int valid = channels - row < kTileRows ? static_cast<int>(channels - row) : kTileRows;
            for (int64_t panel = 0; panel < panels; ++panel) {
                const Tile tile = multiply(depth, a, kTileRows, gate + panel * gate_floats, kPanel);
                float* to = x + panel * panel_floats + row * kPanel;
                for (int r = 0; r < valid; ++r) {
                    const F32 bias = broadcast(first ? 0.0f : ffn.out.bias[row + r]);
                    for (int v = 0; v < kPanelVectors; ++v) {
                        float* at = to + r * kPanel + v * kLanes;
                        store(at, load(at) + (tile.row[r][v] + bias));
                    }
                }
            }
        }
    }
}

}  // namespace swk::SWK_ISA
