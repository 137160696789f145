// The gradient of the gated FFN on panels of tokens in scratch. Formulas: swda_backward.h.
//
// Hidden channels proceed in chunks, whose h1, h2 and gate stay in L2. MACs per token: 9 C hidden.
#pragma once

#include "swda_backward.h"
#include "tokens.h"
#include "weight_gradients.h"

namespace swk::SWK_ISA {

// Hidden channels of a chunk: whole tiles, nearly equal, at most 120: h1, h2 and the gate of 64 tokens take 90 KiB.
static inline int64_t backward_chunk(int64_t hidden) {
    const int64_t tiles = filled(hidden, kTileRows) / kTileRows, most = 120 / kTileRows;
    const int64_t chunks = (tiles + most - 1) / most;
    return (tiles + chunks - 1) / chunks * kTileRows;
}

// Scratch of FfnGradient for `panels` panels.
struct FfnGradientShape {
    int64_t channels, hidden, panels, map, turned, hidden_map, floats;

    FfnGradientShape(int64_t channels, int64_t hidden, int64_t panels)
        : channels(channels), hidden(hidden), panels(panels) {
        map = panels * channels * kPanel;
        turned = panels * turned_columns(channels) * kPanel;
        hidden_map = panels * backward_chunk(hidden) * kPanel;
        floats = 2 * map + 2 * turned + 3 * hidden_map + panels * 2 * kPanel;
    }
};

class FfnGradient {
public:
    FfnGradient(const FfnGradientShape& shape, const FfnWeights& weights, const TransposedWeights& transposed,
                float* scratch)
        : shape_(shape), weights_(weights), transposed_(transposed) {
        const auto take = [&scratch](int64_t floats) { return scratch += floats, scratch - floats; };
        normed_ = take(shape.map), grad_normed_ = take(shape.map);
        turned_normed_ = take(shape.turned), turned_grad_ = take(shape.turned);
        h1_ = take(shape.hidden_map), h2_ = take(shape.hidden_map), gate_ = take(shape.hidden_map);
        statistics_ = scratch;
    }

    // Replaces grad, the gradient of y + ffn(y), by that of y, and adds to `sums`; both [panel][C][kPanel]. Tokens after
    // the last one have a gradient of 0.
    void backward(const float* y, int64_t panels, float* grad, const FfnGradients& sums) const {
        const int64_t channels = shape_.channels, floats = channels * kPanel, chunk = backward_chunk(shape_.hidden);
        for (int64_t p = 0; p < panels; ++p) {
            norm_panel(y + p * floats, channels, weights_.norm_weight, weights_.norm_bias, normed_ + p * floats,
                       statistics_ + p * 2 * kPanel);
        }
        if (sums.in) turn_panels(normed_, channels, panels, turned_normed_);
        if (sums.out) turn_panels(grad, channels, panels, turned_grad_);
        if (sums.out_bias) add_rows(grad, channels, floats, panels, sums.out_bias);
        for (int64_t first = 0; first < shape_.hidden; first += chunk) {
            const int64_t left = shape_.hidden - first, depth = left < chunk ? left : chunk;
            make_hidden(first, depth, panels);
            differentiate_gate(first, depth, panels, grad);
            add_weight_gradients(first, depth, panels, sums);
            add_grad_normed(first, depth, panels);
        }
        for (int64_t p = 0; p < panels; ++p) {
            norm_panel_backward(grad_normed_ + p * floats, y + p * floats, channels, weights_.norm_weight,
                                statistics_ + p * 2 * kPanel, grad + p * floats, sums.norm);
        }
    }

private:
    const FfnGradientShape& shape_;
    const FfnWeights& weights_;
    const TransposedWeights& transposed_;
    float *normed_, *grad_normed_, *turned_normed_, *turned_grad_, *h1_, *h2_, *gate_, *statistics_;

    int64_t panel_floats() const { return backward_chunk(shape_.hidden) * kPanel; }

    // h1 and h2 of `depth` hidden channels from `first` on.
    void make_hidden(int64_t first, int64_t depth, int64_t panels) const {
        constexpr int kPairs = kTileRows / 2;
        const int64_t channels = shape_.channels;
        const float* in_bias = weights_.in.bias + 2 * first;
        multiply_panels(weights_.in.weight + 2 * first * channels, filled(depth, kPairs) * 2, channels, normed_,
                        channels * kPanel, panels, [&](const Tile& tile, int64_t row, int64_t panel) {
            const int64_t at = panel * panel_floats() + row / 2 * kPanel;
            for (int r = 0; r < kPairs; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    store(h1_ + at + r * kPanel + v * kLanes, tile.row[r][v] + broadcast(in_bias[row + r]));
                    store(h2_ + at + r * kPanel + v * kLanes,
                          tile.row[r + kPairs][v] + broadcast(in_bias[row + r + kPairs]));
                }
            }
        });
    }

    // gate = h1 h2; then h1 and h2 become their gradients.
    void differentiate_gate(int64_t first, int64_t depth, int64_t panels, const float* grad) const {
        const int64_t channels = shape_.channels;
        multiply_panels(transposed_.out + first * channels, depth, channels, grad, channels * kPanel, panels,
                        [&](const Tile& tile, int64_t row, int64_t panel) {
            const int64_t at = panel * panel_floats() + row * kPanel;
            for (int r = 0; r < kTileRows && row + r < depth; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    const int64_t i = at + r * kPanel + v * kLanes;
                    const F32 h1 = load(h1_ + i), h2 = load(h2_ + i);
                    store(gate_ + i, h1 * h2);
                    store(h1_ + i, tile.row[r][v] * h2);
                    store(h2_ + i, tile.row[r][v] * h1);
                }
            }
        });
    }

    void add_weight_gradients(int64_t first, int64_t depth, int64_t panels, const FfnGradients& sums) const {
        const int64_t columns = turned_columns(shape_.channels), floats = panel_floats(), second = shape_.hidden + first;
        if (sums.out) add_product(gate_, depth, floats, turned_grad_, columns, panels, sums.out + first * columns);
        if (sums.in) {
            add_product(h1_, depth, floats, turned_normed_, columns, panels, sums.in + first * columns);
            add_product(h2_, depth, floats, turned_normed_, columns, panels, sums.in + second * columns);
        }
        if (sums.in_bias) {
            add_rows(h1_, depth, floats, panels, sums.in_bias + first * kLanes);
            add_rows(h2_, depth, floats, panels, sums.in_bias + second * kLanes);
        }
    }

    // grad_normed = in^T dh, summed over chunks.
    void add_grad_normed(int64_t first, int64_t depth, int64_t panels) const {
        const int64_t channels = shape_.channels;
        for (int64_t row = 0; row < channels; row += kTileRows) {
            const float* weight = transposed_.in + row * 2 * shape_.hidden;
            const int valid = channels - row < kTileRows ? static_cast<int>(channels - row) : kTileRows;
            for (int64_t panel = 0; panel < panels; ++panel) {
                const int64_t at = panel * panel_floats();
                const Tile of_h1 = multiply(depth, weight + first * kTileRows, kTileRows, h1_ + at, kPanel);
                const Tile of_h2 =
                    multiply(depth, weight + (shape_.hidden + first) * kTileRows, kTileRows, h2_ + at, kPanel);
                float* to = grad_normed_ + (panel * channels + row) * kPanel;
                for (int r = 0; r < kTileRows && r < valid; ++r) {
                    for (int v = 0; v < kPanelVectors; ++v) {
                        float* place = to + r * kPanel + v * kLanes;
                        const F32 before = first ? load(place) : F32{};
                        store(place, before + (of_h1.row[r][v] + of_h2.row[r][v]));
                    }
                }
            }
        }
    }
};

}  // namespace swk::SWK_ISA
