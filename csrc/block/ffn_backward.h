// The gradient of the gated FFN on panels of tokens in scratch. Formulas: swda_backward.h.
//
// Hidden channels proceed in chunks, and in these by tiles of rows: h1, h2 and the gradient of a tile's gate are made
// together, so that h1 and h2 stay in L1. MACs per token: 8 C hidden. Word holds the factors of products (base/tile.h).
#pragma once

#include "swda_backward.h"
#include "tokens.h"
#include "weight_gradients.h"

namespace swk::SWK_ISA {

// Hidden channels of a chunk: whole tiles, nearly equal, at most 120: the gate and the gradients of h1 and h2 for 64
// tokens take 90 KiB (bfloat16: 75 KiB).
static inline int64_t backward_chunk(int64_t hidden) {
    const int64_t tiles = filled(hidden, kTileRows) / kTileRows, most = 120 / kTileRows;
    const int64_t chunks = (tiles + most - 1) / most;
    return (tiles + chunks - 1) / chunks * kTileRows;
}

// Scratch of FfnGradient for `panels` panels. What a second copy for another order of pairs takes is 0 for float.
template <class Word>
struct FfnGradientShape {
    int64_t channels, hidden, panels, chunk, map, factors, turned, rows, floats;

    FfnGradientShape(int64_t channels, int64_t hidden, int64_t panels)
        : channels(channels), hidden(hidden), panels(panels), chunk(backward_chunk(hidden)) {
        map = panels * channels * kPanel;
        factors = panels * words<Word>(channels) * kPanel;
        turned = panels * turned_columns(channels) * kPanelWords<Word>;
        rows = panels * chunk * kPanelWords<Word>;
        floats = map + factors + second_copy(factors) + 2 * turned + 3 * rows + second_copy(2 * rows) +
                 2 * kTileRows * kPanel + panels * 2 * kPanel;
    }

    static constexpr int64_t second_copy(int64_t words) { return kDepth<Word> == 1 ? 0 : words; }
};

template <class Word>
class FfnGradient {
public:
    using Shape = FfnGradientShape<Word>;

    FfnGradient(const Shape& shape, const FfnWeights& weights, const TransposedWeights& transposed, float* scratch)
        : shape_(shape), weights_(weights), transposed_(transposed) {
        const auto take = [&scratch](int64_t floats) { return scratch += floats, scratch - floats; };
        const auto take_words = [&take](int64_t words) { return reinterpret_cast<Word*>(take(words)); };
        grad_normed_ = take(shape.map), normed_ = take_words(shape.factors);
        grad_factors_ = take_words(Shape::second_copy(shape.factors));
        turned_normed_ = take_words(shape.turned), turned_grad_ = take_words(shape.turned);
        gate_ = take_words(shape.rows), grad_rows_ = take_words(2 * shape.rows);
        grad_hidden_ = kDepth<Word> == 1 ? grad_rows_ : take_words(2 * shape.rows);
        hidden_ = take(2 * kTileRows * kPanel), statistics_ = scratch;
    }

    // Replaces grad, the gradient of y + ffn(y), by that of y, and adds to `sums`; both [panel][C][kPanel]. Tokens after
    // the last one have a gradient of 0.
    void backward(const float* y, int64_t panels, float* grad, const FfnGradients& sums) const {
        const int64_t channels = shape_.channels, floats = channels * kPanel, panel_words = depth() * kPanel;
        const Word* factors = nullptr;
        for (int64_t p = panels - 1; p >= 0; --p) {
            norm_panel(y + p * floats, channels, weights_.norm_weight, weights_.norm_bias, normed_ + p * panel_words,
                       statistics_ + p * 2 * kPanel);
            factors = channel_factors(grad + p * floats, channels, grad_factors_ + p * panel_words);
        }
        if (sums.in) turn_panels(normed_, channels, panel_words, panels, turned_normed_);
        if (sums.out) turn_panels(factors, channels, panel_words, panels, turned_grad_);
        if (sums.out_bias) add_rows(grad, channels, floats, panels, sums.out_bias);
        for (int64_t first = 0; first < shape_.hidden; first += shape_.chunk) {
            const int64_t left = shape_.hidden - first, rows = left < shape_.chunk ? left : shape_.chunk;
            for (int64_t row = 0; row < rows; row += kTileRows) {
                for (int64_t panel = 0; panel < panels; ++panel) {
                    make_hidden(first + row, normed_ + panel * panel_words);
                    differentiate_gate(first, row, panel, factors + panel * panel_words, sums.in_bias);
                }
            }
            add_weight_gradients(first, rows, panels, sums);
            add_grad_normed(first, rows, panels);
        }
        for (int64_t p = 0; p < panels; ++p) {
            norm_panel_backward(grad_normed_ + p * floats, y + p * floats, channels, weights_.norm_weight,
                                statistics_ + p * 2 * kPanel, grad + p * floats, sums.norm);
        }
    }

private:
    const Shape& shape_;
    const FfnWeights& weights_;
    const TransposedWeights& transposed_;
    float *grad_normed_, *hidden_, *statistics_;  // hidden_: h1 and h2 of a tile, [2][kTileRows][kPanel]
    Word *normed_, *grad_factors_;                // [panel][word of C][kPanel]
    Word *turned_normed_, *turned_grad_;
    Word *gate_, *grad_rows_;  // [panel][row][word of tokens], [panel][h1, h2][row][word of tokens]
    Word* grad_hidden_;        // [panel][h1, h2][word of rows][kPanel]; the same memory for float

    int64_t depth() const { return words<Word>(shape_.channels); }

    // hidden_ = h1 and h2 of kTileRows hidden channels from `first` on; zeros after the last one.
    void make_hidden(int64_t first, const Word* normed) const {
        constexpr int kPairs = kTileRows / 2;
        for (int half = 0; half < 2; ++half, first += kPairs) {
            float *h1 = hidden_ + half * kPairs * kPanel, *h2 = h1 + kTileRows * kPanel;
            if (first >= shape_.hidden) {
                for (int64_t i = 0; i < kPairs * kPanel; ++i) h1[i] = h2[i] = 0.0f;
                continue;
            }
            const float* bias = weights_.in.bias + 2 * first;
            const Tile tile =
                multiply(depth(), weight_words<Word>(weights_.in) + 2 * first * depth(), kTileRows, normed, kPanel);
            for (int r = 0; r < kPairs; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    const int64_t at = r * kPanel + v * kLanes;
                    store(h1 + at, tile.row[r][v] + broadcast(bias[r]));
                    store(h2 + at, tile.row[r + kPairs][v] + broadcast(bias[r + kPairs]));
                }
            }
        }
    }

    // The gate and the gradients of h1 and h2 of hidden_, which are rows `row` and following of the chunk from `first` on.
    void differentiate_gate(int64_t first, int64_t row, int64_t panel, const Word* grad, float* bias) const {
        constexpr int kWords = kPanelWords<Word>;
        const int64_t chunk = shape_.chunk, left = shape_.hidden - first - row;
        const Word* weight = reinterpret_cast<const Word*>(transposed_.out) + (first + row) * depth();
        const Tile tile = multiply(depth(), weight, kTileRows, grad, kPanel);
        Word* gates = gate_ + (panel * chunk + row) * kWords;
        Word* rows1 = grad_rows_ + (panel * 2 * chunk + row) * kWords;
        Word* rows2 = rows1 + chunk * kWords;
        Word* words1 = grad_hidden_ + panel * 2 * chunk * kWords + row / kDepth<Word> * kPanel;
        Word* words2 = words1 + chunk * kWords;
        for (int r = 0; r < kTileRows; r += kDepth<Word>) {
            F32 of_h1[kPanelVectors][kDepth<Word>], of_h2[kPanelVectors][kDepth<Word>];
            for (int i = 0; i < kDepth<Word>; ++i) {
                F32 gate[kPanelVectors], d1[kPanelVectors], d2[kPanelVectors];
                for (int v = 0; v < kPanelVectors; ++v) {
                    const float* at = hidden_ + (r + i) * kPanel + v * kLanes;
                    const F32 h1 = load(at), h2 = load(at + kTileRows * kPanel);
                    gate[v] = h1 * h2;
                    of_h1[v][i] = d1[v] = tile.row[r + i][v] * h2;
                    of_h2[v][i] = d2[v] = tile.row[r + i][v] * h1;
                }
                store_tokens(gates + (r + i) * kWords, gate);
                store_tokens(rows1 + (r + i) * kWords, d1), store_tokens(rows2 + (r + i) * kWords, d2);
                if (bias && r + i < left) {
                    float *bias1 = bias + (first + row + r + i) * kLanes, *bias2 = bias1 + shape_.hidden * kLanes;
                    store(bias1, load(bias1) + (d1[0] + d1[1])), store(bias2, load(bias2) + (d2[0] + d2[1]));
                }
            }
            if constexpr (kDepth<Word> == 2) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    store_depth(words1 + v * kLanes, kPanel, r, of_h1[v]);
                    store_depth(words2 + v * kLanes, kPanel, r, of_h2[v]);
                }
            }
        }
    }

    void add_weight_gradients(int64_t first, int64_t rows, int64_t panels, const FfnGradients& sums) const {
        const int64_t columns = turned_columns(shape_.channels), panel_words = shape_.chunk * kPanelWords<Word>;
        if (sums.out) add_product(gate_, rows, panel_words, turned_grad_, columns, panels, sums.out + first * columns);
        if (!sums.in) return;
        for (int half = 0; half < 2; ++half) {
            add_product(grad_rows_ + half * panel_words, rows, 2 * panel_words, turned_normed_, columns, panels,
                        sums.in + (half * shape_.hidden + first) * columns);
        }
    }

    // grad_normed = in^T times the gradients of h1 and h2, summed over chunks.
    void add_grad_normed(int64_t first, int64_t rows, int64_t panels) const {
        const int64_t channels = shape_.channels, hidden = words<Word>(shape_.hidden), count = words<Word>(rows);
        const int64_t half_words = shape_.chunk * kPanelWords<Word>;
        for (int64_t row = 0; row < channels; row += kTileRows) {
            const Word* weight = reinterpret_cast<const Word*>(transposed_.in) + row * 2 * hidden;
            weight += words<Word>(first) * kTileRows;
            for (int64_t panel = 0; panel < panels; ++panel) {
                const Word* grads = grad_hidden_ + panel * 2 * half_words;
                Tile tile = multiply(count, weight, kTileRows, grads, kPanel);
                multiply_onto(tile, count, weight + hidden * kTileRows, kTileRows, grads + half_words, kPanel);
                float* to = grad_normed_ + (panel * channels + row) * kPanel;
                if (first) add_tile(tile, to, kPanel, channels - row);
                else store_tile(tile, to, kPanel, channels - row);
            }
        }
    }
};

}  // namespace swk::SWK_ISA
