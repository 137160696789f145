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

constexpr int kPairs = kTileRows / 2;  // of channels of x1 and x2 in a tile

// Hidden channels per chunk, at most 256: a panel of x1 * x2 then takes 32 KiB (AVX-512) and a tile of the output
// weights 12 KiB, which both stay in L1 and L2. Chunks are whole tiles and whole words, and nearly equal in size.
template <class Word>
static inline int64_t hidden_chunk(int64_t hidden) {
    constexpr int64_t kUnit = kPairs % kDepth<Word> ? kPairs * kDepth<Word> : kPairs;
    const int64_t units = (hidden + kUnit - 1) / kUnit, most = 256 / kUnit;
    const int64_t chunks = (units + most - 1) / most;
    return (units + chunks - 1) / chunks * kUnit;
}

// x += out(x1 * x2) of norm(x) for `panels` panels x [panel][channel][kPanel].
// Scratch: normed [panel][word][kPanel]; gate [panel][word of hidden_chunk][kPanel].
template <class Word>
static inline void ffn_panels(const FfnWeights& ffn, int64_t channels, int64_t panels, float* x, Word* normed,
                              Word* gate) {
    const int64_t panel_floats = channels * kPanel, chunk = hidden_chunk<Word>(ffn.hidden);
    const int64_t in_depth = words<Word>(channels), normed_words = in_depth * kPanel;
    const int64_t gate_words = words<Word>(chunk) * kPanel;
    for (int64_t p = 0; p < panels; ++p) {
        norm_panel(x + p * panel_floats, channels, ffn.norm_weight, ffn.norm_bias, normed + p * normed_words);
    }
    for (int64_t first = 0; first < ffn.hidden; first += chunk) {
        const int64_t left = ffn.hidden - first, depth = left < chunk ? left : chunk;
        const int64_t rows = (depth + kPairs - 1) / kPairs * kTileRows;
        const float* in_bias = ffn.in.bias + 2 * first;
        multiply_panels(weight_words<Word>(ffn.in) + 2 * first * in_depth, rows, in_depth, normed, normed_words, panels,
                        [&](const Tile& tile, int64_t row, int64_t panel) {
            const float* bias = in_bias + row;
            for (int v = 0; v < kPanelVectors; ++v) {
                F32 gated[kPairs];
                for (int r = 0; r < kPairs; ++r) {
                    const F32 x1 = tile.row[r][v] + broadcast(bias[r]);
                    const F32 x2 = tile.row[r + kPairs][v] + broadcast(bias[r + kPairs]);
                    gated[r] = x1 * x2;
                }
                store_depth(gate + panel * gate_words + v * kLanes, kPanel, row / 2, gated);
            }
        });
        for (int64_t row = 0; row < channels; row += kTileRows) {
            const Word* a = weight_words<Word>(ffn.out);
            a += row * words<Word>(ffn.hidden) + words<Word>(first) * kTileRows;
            const int valid = channels - row < kTileRows ? static_cast<int>(channels - row) : kTileRows;
            for (int64_t panel = 0; panel < panels; ++panel) {
                const Tile tile = multiply(words<Word>(depth), a, kTileRows, gate + panel * gate_words, kPanel);
                float* to = x + panel * panel_floats + row * kPanel;
                for (int r = 0; r < kTileRows && r < valid; ++r) {
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
