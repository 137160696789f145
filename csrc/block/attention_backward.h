// The gradient of one head of one half of a window's attention (formula: swda_backward.h), in the layout of attention.h.
//
// The forward pass is computed again from the head's 3d channels of qkv. The window half proceeds by panels of queries:
//   l, P and g of a panel are [key][query]; dq sums over keys; dv and dk sum over queries and need the transpose.
//   6 d N^2 multiply-accumulates (l, P v, g, dq, dk, dv), 2 N^2 exponentials, two transpositions of N^2 elements.
// Channel half: 6 d^2 N multiply-accumulates. Convolution: 3 * 27 d N (forward, gradients of input and of weights).
// The gradients of all heads begin after the forward passes of all. Heads of small windows keep q, k, v and l until then;
// those of large ones compute them twice.
#pragma once

#include "attention.h"
#include "weight_gradients.h"

namespace swk::SWK_ISA {

// Scratch of HeadGradient in addition to that of HeadOf. Words of bfloat16 are copies beside the float32 numbers.
template <class Word>
struct GradientShape {
    int64_t keys;  // N in whole panels
    int64_t grads, out, factors, turned, panel, panel_words, square, matrix, planes, scales, floats;
    // What a head keeps from its forward pass for its gradient: q, k and v, their scales, and logits or P.
    int64_t kept_logits, kept_floats;
    bool keeps;  // whether every head keeps its own; else only the last one's is there, and is computed again

    explicit GradientShape(const HeadShape& shape) {
        keys = shape.panels * kPanel;
        grads = 3 * shape.size * shape.pitch;                                // gradient of q, k and v
        out = shape.size * shape.pitch;                                      // gradient of the head's output
        factors = second_copy(words<Word>(shape.size) * shape.pitch);        // one of q, k, v, out
        turned = filled(words<Word>(shape.tokens) * shape.padded_size + kPanel, 16);  // one of q, k, v, out
        panel = filled(shape.tokens * kPanel, 16);                           // [key][query]
        panel_words = filled(words<Word>(shape.tokens) * kPanel, 16);        // [word of keys][query]
        square = kPanel / kDepth<Word> * keys;                               // [word of queries][key]
        matrix = filled(filled(shape.size, kTileRows) * shape.weight_stride, 16);  // of the channel half
        planes = shape.plane;
        scales = filled(shape.size > shape.pitch ? shape.size : shape.pitch, 16);  // of channels, or of tokens
        floats = grads + out + 4 * factors + 3 * turned + panel + panel_words + second_copy(panel_words) + planes;
        // The channel half takes four matrices from the two squares.
        floats += 2 * square > 4 * matrix ? 2 * square : 4 * matrix;
        const auto keep = [&](int64_t logits) {
            kept_logits = logits > matrix ? logits : matrix;
            kept_floats = grads + kept_logits + 2 * scales + keys;
        };
        keep(shape.panels * panel);
        keeps = 2 * shape.heads * kept_floats <= kMostKept;
        if (!keeps) keep(panel);
        floats += (keeps ? 2 * shape.heads : 1) * kept_floats;
    }

    static constexpr int64_t kMostKept = 65536;  // floats: 256 KiB, beside the rest in an L2 cache of 1 MiB

    static constexpr int64_t second_copy(int64_t floats) { return kDepth<Word> == 1 ? 0 : floats; }
};

template <class Word>
class HeadGradient : public HeadOf<Word> {
public:
    HeadGradient(const HeadShape& shape, const GradientShape<Word>& sizes, const AttentionWeights& weights,
                 float* scratch)
        : HeadOf<Word>(shape, weights, scratch), sizes_(sizes) {
        float* next = scratch + shape.scratch_floats;
        const auto take = [&next](int64_t floats) { return next += floats, next - floats; };
        const auto take_words = [&take](int64_t words) { return reinterpret_cast<Word*>(take(words)); };
        grads_ = take(sizes.grads), out_ = take(sizes.out);
        q_factors_ = take_words(sizes.factors), k_factors_ = take_words(sizes.factors);
        v_factors_ = take_words(sizes.factors), out_factors_ = take_words(sizes.factors);
        q_tokens_ = take_words(sizes.turned), k_tokens_ = take_words(sizes.turned);
        out_tokens_ = take_words(sizes.turned);
        logit_grads_ = take(sizes.panel), powers_ = take_words(sizes.panel_words), plane_ = take(sizes.planes);
        key_words_ = kDepth<Word> == 1 ? reinterpret_cast<Word*>(logit_grads_) : take_words(sizes.panel_words);
        kept_ = take((sizes.keeps ? 2 * shape.heads : 1) * sizes.kept_floats);
        squares_ = next;
        for (int64_t i = 0; i < sizes.planes; ++i) plane_[i] = 0.0f;
    }

    // [d][pitch], zeros after the last token. Input: the gradient of the head's output.
    float* out() { return out_; }

    // rows [3d][pitch] = the head's qkv of normed [panel][word of C][kPanel], before the depth-wise convolution.
    void make_rows(const Word* normed, int64_t unit, float* rows) const {
        const int64_t depth = words<Word>(shape_.channels), first = unit * shape_.rows;
        const Word* weight = weight_words<Word>(weights_.qkv) + first * depth;
        multiply_panels(weight, 3 * shape_.size, depth, normed, depth * kPanel, shape_.panels,
                        [&](const Tile& tile, int64_t row, int64_t panel) {
            this->store_rows(tile, weights_.qkv.bias + first + row, row, panel, rows);
        });
    }

    // Computes the head's output from `rows` [3d][pitch], its qkv before the depth-wise convolution. `attended`: the
    // head's channels in [panel][C][kPanel].
    void forward(const float* rows, const Regions& regions, int half, int64_t head, float* attended) {
        prepare(rows, half, head);
        if (half) channel_half_forward(attended);
        else if (regions.several) window_half_forward<true>(regions.of_token, head, attended);
        else window_half_forward<false>(regions.of_token, head, attended);
    }

    // Replaces `rows`, as in `forward`, by their gradient, zeros after the last token. Adds to dwconv [3d][10][kLanes]; the
    // window half also to bias [(2w-1)^2] and log_scale [1].
    void backward(float* rows, const Regions& regions, int half, int64_t head, float* dwconv, float* bias,
                  float* log_scale) {
        if (sizes_.keeps) select(half, head);
        else prepare(rows, half, head);
        if (half) {
            channel_half_backward();
        } else {
            if (regions.several) window_half_backward<true>(regions.of_token, head, bias);
            else window_half_backward<false>(regions.of_token, head, bias);
            *log_scale += normalise_tokens_backward(q(), grad(0), q_scales_, weights_.scale[head]);
            normalise_tokens_backward(k(), grad(1), k_scales_, 1.0f);
        }
        convolve_backward(rows, half * shape_.heads + head, dwconv);
    }

private:
    using HeadOf<Word>::shape_;
    using HeadOf<Word>::weights_;
    using HeadOf<Word>::planes_;
    using HeadOf<Word>::qkv_;
    using HeadOf<Word>::logits_;
    using HeadOf<Word>::values_;
    using HeadOf<Word>::q;
    using HeadOf<Word>::k;
    using HeadOf<Word>::v;

    const GradientShape<Word>& sizes_;
    float *grads_, *out_, *logit_grads_, *squares_, *plane_, *kept_;
    Word *q_factors_, *k_factors_, *v_factors_, *out_factors_;  // of pairs only: [word of d][pitch]
    Word *q_tokens_, *k_tokens_, *out_tokens_;                  // [word of tokens][padded_size]
    Word* powers_;                                              // exp(logits) as [word of keys][query]
    Word* key_words_;                                           // logit_grads_ as [word of keys][query]
    // What is kept of the head at hand, beside qkv_.
    float *kept_logits_, *q_scales_, *k_scales_, *highest_;

    // The head's place of what is kept.
    void select(int half, int64_t head) {
        float* at = kept_ + (sizes_.keeps ? half * shape_.heads + head : 0) * sizes_.kept_floats;
        qkv_ = at, kept_logits_ = at + sizes_.grads;
        q_scales_ = kept_logits_ + sizes_.kept_logits, k_scales_ = q_scales_ + sizes_.scales;
        highest_ = k_scales_ + sizes_.scales;
    }

    // q, k and v of `rows`, q and k normalised.
    void prepare(const float* rows, int half, int64_t head) {
        select(half, head);
        make_qkv(rows, half * shape_.heads + head);
        if (half) {
            this->normalise_channels(q(), q_scales_), this->normalise_channels(k(), k_scales_);
        } else {
            this->template normalise_tokens<float>(q(), weights_.scale[head], q_scales_);
            this->template normalise_tokens<float>(k(), 1.0f, k_scales_);
        }
    }

    // Gradient of q, k or v after the convolution: [d][pitch].
    float* grad(int part) { return grads_ + part * shape_.size * shape_.pitch; }

    // Copies a row of tokens into a plane; the border of zeros is not touched.
    void fill_plane(const float* row, float* plane) {
        const int64_t w = shape_.window;
        for (int64_t y = 0; y < w; ++y) {
            const float* from = row + y * w;
            float* to = plane + 1 + (y + 1) * (w + 1);
            int64_t x = 0;
            for (; x + 8 <= w; x += 8) __builtin_memcpy(to + x, from + x, 8 * sizeof(float));
            for (; x < w; ++x) to[x] = from[x];
        }
    }

    // to = dwconv(from), one channel; zeros after the last token. `taps` as the weights have them, or in reverse order.
    void convolve_row(const float* from, const F32 (&tap)[9], float bias, float* to) {
        if (shape_.whole_rows) {
            for (int64_t t = 0; t < shape_.tokens; t += kLanes) store(to + t, load(from + t));
            this->convolve_rows(tap, bias, to);
        } else {
            fill_plane(from, planes_);
            this->convolve(planes_, tap, bias, to);
        }
    }

    // qkv_ = dwconv(rows).
    void make_qkv(const float* rows, int64_t unit) {
        for (int64_t row = 0; row < 3 * shape_.size; ++row) {
            const int64_t at = unit * shape_.rows + row;
            F32 tap[9];
            for (int i = 0; i < 9; ++i) tap[i] = broadcast(weights_.dwconv[at * 9 + i]);
            convolve_row(rows + row * shape_.pitch, tap, weights_.dwconv_bias[at], qkv_ + row * shape_.pitch);
        }
    }

    // Replaces rows by their gradient, computed from grads_; gradients of taps and bias of row r add to 10 vectors at
    // dwconv + 10 r kLanes.
    void convolve_backward(float* rows, int64_t unit, float* dwconv) {
        for (int64_t row = 0; row < 3 * shape_.size; ++row, dwconv += 10 * kLanes) {
            float* line = rows + row * shape_.pitch;
            const float* grads = grads_ + row * shape_.pitch;
            F32 sum[10];
            for (int i = 0; i < 10; ++i) sum[i] = load(dwconv + i * kLanes);
            if (shape_.window == kLanes) add_tap_gradients<kLanes>(line, grads, sum);
            else if (shape_.whole_rows) add_tap_gradients<kLanes / 2>(line, grads, sum);
            else add_tap_gradients(line, grads, sum);
            for (int i = 0; i < 10; ++i) store(dwconv + i * kLanes, sum[i]);
            F32 flipped[9];
            const float* taps = weights_.dwconv + (unit * shape_.rows + row) * 9;
            for (int i = 0; i < 9; ++i) flipped[i] = broadcast(taps[8 - i]);
            convolve_row(grads, flipped, 0.0f, line);
        }
    }

    // Of a window with rows of `Row` tokens, as in convolve_rows: the gradient moves to the neighbours, not the input.
    template <int Row>
    void add_tap_gradients(const float* line, const float* grads, F32 (&sum)[10]) {
        F32 before = {}, here = load(line);
        for (int64_t t = 0; t < shape_.tokens; t += kLanes) {
            const F32 after = t + kLanes < shape_.tokens ? load(line + t + kLanes) : F32{};
            const F32 above = Row == kLanes ? before : middle(before, here, Lanes{});
            const F32 below = Row == kLanes ? after : middle(here, after, Lanes{});
            const F32 grad = load(grads + t);
            const F32 beside[3] = {moved<Row, -1>(grad, Lanes{}), grad, moved<Row, 1>(grad, Lanes{})};
            for (int i = 0; i < 3; ++i) {
                sum[i] = madd(beside[i], above, sum[i]);
                sum[3 + i] = madd(beside[i], here, sum[3 + i]);
                sum[6 + i] = madd(beside[i], below, sum[6 + i]);
            }
            sum[9] += grad;
            before = here, here = after;
        }
    }

    // Of any window. Both planes have borders of zeros, so one pass over the whole plane gives all sums of products.
    void add_tap_gradients(const float* line, const float* grads, F32 (&sum)[10]) {
        const int64_t w = shape_.window, pitch = w + 1, first = 1 + pitch, last = first + w * pitch;
        fill_plane(line, planes_);
        fill_plane(grads, plane_);
        for (int64_t i = first; i < last; i += kLanes) {
            const F32 value = load(plane_ + i);
            for (int tap = 0; tap < 9; ++tap) {
                sum[tap] = madd(value, load(planes_ + i + (tap / 3 - 1) * pitch + tap % 3 - 1), sum[tap]);
            }
            sum[9] += value;
        }
    }

    // Replaces grads by the gradient of the input of `normalise_tokens`; rows is its output. Returns the sum of rows .
    // grads over the tokens, the gradient of log(factor).
    float normalise_tokens_backward(const float* rows, float* grads, const float* scales, float factor) {
        // Multiply by 1 / factor twice, because factor^2 may underflow float32. Where 1 / factor overflows, rows are 0.
        const float inverse = factor > 1e-37f ? 1.0f / factor : 0.0f;
        const F32 floored = factor / broadcast(kLeastNorm);
        F32 total = {};  // lanes after the last token add 0, because rows are 0 there
        for (int64_t t = 0; t < sizes_.keys; t += kLanes) {
            F32 dot[2] = {};
            for (int64_t c = 0; c < shape_.size; ++c) {
                const int64_t at = c * shape_.pitch + t;
                dot[c & 1] = madd(load(rows + at), load(grads + at), dot[c & 1]);
            }
            const F32 sum = dot[0] + dot[1], scale = load(scales + t);
            total += sum;
            const F32 along = scale < floored ? sum * inverse : F32{};
            for (int64_t c = 0; c < shape_.size; ++c) {
                const int64_t at = c * shape_.pitch + t;
                store(grads + at, scale * (load(grads + at) - along * (load(rows + at) * inverse)));
            }
        }
        return sum_of_lanes(total);
    }

    // ---- window half ----------------------------------------------------------------------------------------------

    template <bool Masked>
    void window_half_forward(const float* region, int64_t head, float* to) {
        const Word* queries = this->channel_words(q(), q_factors_);
        const Word* keys = this->channel_words(k(), k_factors_);
        this->turn_tokens(v(), this->factors(values_));
        for (int64_t panel = 0; panel < shape_.panels; ++panel) {
            F32 sum[kPanelVectors];
            make_panel_logits<Masked>(queries, keys, region, head, panel);
            for (int v = 0; v < kPanelVectors; ++v) {
                const F32 highest = load(highest_ + panel * kPanel + v * kLanes);
                sum[v] = this->exponentiate(logits_ + v * kLanes, highest, powers_ + v * kLanes);
            }
            this->mix_values(powers_, sum, to + panel * shape_.channels * kPanel);
        }
    }

    // The place of a panel's logits: its own if they are kept.
    void select_logits(int64_t panel) { logits_ = kept_logits_ + (sizes_.keeps ? panel * sizes_.panel : 0); }

    // logits_ and highest_ of a panel of queries, where they are kept.
    template <bool Masked>
    void make_panel_logits(const Word* queries, const Word* keys, const float* region, int64_t head, int64_t panel) {
        F32 highest[kPanelVectors];
        select_logits(panel);
        this->template make_logits<Masked>(queries, keys, region, head, panel, highest);
        for (int v = 0; v < kPanelVectors; ++v) store(highest_ + panel * kPanel + v * kLanes, highest[v]);
    }

    template <bool Masked>
    void window_half_backward(const float* region, int64_t head, float* bias) {
        const Word* values = this->channel_words(v(), v_factors_);
        const Word* out = this->channel_words(out_, out_factors_);
        const Word* queries = sizes_.keeps ? nullptr : this->channel_words(q(), q_factors_);
        const Word* keys = sizes_.keeps ? nullptr : this->channel_words(k(), k_factors_);
        this->turn_tokens(q(), q_tokens_), this->turn_tokens(k(), k_tokens_), this->turn_tokens(out_, out_tokens_);
        for (int64_t i = 0; i < 2 * shape_.size * shape_.pitch; ++i) grad(1)[i] = 0.0f;
        for (int64_t panel = 0; panel < shape_.panels; ++panel) {
            if (sizes_.keeps) select_logits(panel);
            else make_panel_logits<Masked>(queries, keys, region, head, panel);
            differentiate_panel(values, out + panel * kPanel, highest_ + panel * kPanel);
            add_bias_gradient(panel, bias);
            sum_over_keys(panel);
            sum_over_queries(panel);
        }
    }

    // For a panel of queries: replaces logits_ by P and writes dl to logit_grads_ and key_words_. `out`: out's factors.
    void differentiate_panel(const Word* values, const Word* out, const float* highest) {
        F32 inverse[kPanelVectors], ties[kPanelVectors], delta[kPanelVectors] = {};
        for (int v = 0; v < kPanelVectors; ++v) {
            const F32 largest = load(highest + v * kLanes);
            inverse[v] = 1.0f / (exponentiate_marking(logits_ + v * kLanes, largest, ties[v]) + 1.0f);
        }
        for (int64_t first = 0; first < shape_.tokens; first += kTileRows) {
            const Tile g = multiply(words<Word>(shape_.size), values + first, shape_.pitch, out, shape_.pitch);
            for (int r = 0; r < kTileRows && first + r < shape_.tokens; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    const int64_t at = (first + r) * kPanel + v * kLanes;
                    const F32 marked = load(logits_ + at) * inverse[v];
                    delta[v] = madd(maximum(marked, -marked), g.row[r][v], delta[v]);
                    store(logits_ + at, marked);
                    store(logit_grads_ + at, g.row[r][v]);
                }
            }
        }
        for (int v = 0; v < kPanelVectors; ++v) {
            const F32 to_maximum = delta[v] * inverse[v] / ties[v];
            for (int64_t key = 0; key < shape_.tokens; key += kDepth<Word>) {
                F32 grad[kDepth<Word>] = {};
                for (int i = 0; i < kDepth<Word> && key + i < shape_.tokens; ++i) {
                    const int64_t at = (key + i) * kPanel + v * kLanes;
                    const F32 marked = load(logits_ + at), probability = maximum(marked, -marked);
                    const F32 extra = marked < F32{} ? to_maximum : F32{};
                    store(logits_ + at, probability);
                    grad[i] = probability * (load(logit_grads_ + at) - delta[v]) - extra;
                    store(logit_grads_ + at, grad[i]);
                }
                if constexpr (kDepth<Word> == 2) store_depth(key_words_ + v * kLanes, kPanel, key, grad);
            }
        }
    }

    // As `exponentiate`. Elements equal to the row maximum get a minus sign, and `ties` is their number.
    F32 exponentiate_marking(float* column, F32 highest, F32& ties) {
        F32 sum[4] = {};
        ties = F32{};
        for (int64_t key = 0; key < shape_.tokens; ++key, column += kPanel) {
            const F32 logit = load(column), value = exponential(logit - highest);
            store(column, logit == highest ? -value : value);
            sum[key & 3] += value;
            ties += logit == highest ? broadcast(1.0f) : F32{};
        }
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }

    void add_bias_gradient(int64_t panel, float* bias) {
        if (shape_.whole_rows && !shape_.in_table) return add_bias_of_half_rows(panel, bias);
        const int64_t w = shape_.window, side = 2 * w - 1;
        for (int64_t t = 0; t < kPanel; t += kLanes) {
            const int64_t query = panel * kPanel + t;
            if (query >= shape_.tokens) return;
            // Column by column: consecutive keys of a row would add to overlapping addresses, load after store.
            for (int64_t x = 0; x < w; ++x) {
                for (int64_t y = 0; y < w; ++y) {
                    const float* dl = logit_grads_ + (y * w + x) * kPanel + t;
                    if (shape_.in_table) {
                        float* to = bias + (query / w - y + w - 1) * side + query % w - x + w - 1;
                        store(to, load(to) + load(dl));
                        continue;
                    }
                    for (int lane = 0; lane < kLanes && query + lane < shape_.tokens; ++lane) {
                        const int64_t i = query + lane;
                        bias[(i / w - y + w - 1) * side + i % w - x + w - 1] += dl[lane];
                    }
                }
            }
        }
    }

    // The same where a vector is two rows of queries. Vector t of the panel and key row y add their lower half to row
    // 2t - y of the table, counted from the panel's first row of queries, and their upper half to the next one. So rows are
    // summed before they are added to the table.
    void add_bias_of_half_rows(int64_t panel, float* bias) {
        constexpr int kWindow = kLanes / 2;
        const int64_t side = 2 * kWindow - 1, row = panel * 2 * kPanelVectors;
        const int64_t rows = kWindow - row < 2 * kPanelVectors ? kWindow - row : 2 * kPanelVectors;
        for (int64_t x = 0; x < kWindow; ++x) {
            const float* dl = logit_grads_ + x * kPanel;
            F32 before = {};
            for (int64_t difference = 1 - kWindow; difference < rows; ++difference) {
                F32 sum = {};
                for (int64_t t = 0; 2 * t < rows; ++t) {
                    const int64_t y = 2 * t - difference;
                    if (y >= 0 && y < kWindow) sum += load(dl + y * kWindow * kPanel + t * kLanes);
                }
                const F32 halves = middle(before, sum, Lanes{});
                const F32 both = halves + middle(halves, halves, Lanes{});
                float* to = bias + (row + difference + kWindow - 1) * side + kWindow - 1 - x;
                store_low(to, load_low(to) + both);
                before = sum;
            }
        }
    }

    // Gradient of q of the panel, [d][query].
    void sum_over_keys(int64_t panel) {
        for (int64_t c = 0; c < shape_.size; c += kTileRows) {
            const Tile tile =
                multiply(words<Word>(shape_.tokens), k_tokens_ + c, shape_.padded_size, key_words_, kPanel);
            store_tile(tile, grad(0) + c * shape_.pitch + panel * kPanel, shape_.pitch, shape_.size - c);
        }
    }

    // Adds the contribution of the panel's queries to the gradients of k and v, [d][key].
    void sum_over_queries(int64_t panel) {
        Word *p = reinterpret_cast<Word*>(squares_), *dl = p + sizes_.square;
        turn_panel(logits_, p), turn_panel(logit_grads_, dl);
        const int64_t first = panel * kPanel, left = shape_.tokens - first;
        const int64_t depth = words<Word>(left < kPanel ? left : kPanel);
        for (int64_t c = 0; c < shape_.size; c += kTileRows) {
            const int64_t at = words<Word>(first) * shape_.padded_size + c;
            for (int64_t key = 0; key < sizes_.keys; key += kPanel) {
                const int64_t place = c * shape_.pitch + key, rows = shape_.size - c;
                const Tile of_k = multiply(depth, q_tokens_ + at, shape_.padded_size, dl + key, sizes_.keys);
                add_tile(of_k, grad(1) + place, shape_.pitch, rows);
                const Tile of_v = multiply(depth, out_tokens_ + at, shape_.padded_size, p + key, sizes_.keys);
                add_tile(of_v, grad(2) + place, shape_.pitch, rows);
            }
        }
    }

    // [key][query] -> [word of queries][keys], zeros after the last key.
    void turn_panel(const float* from, Word* to) const {
        float* out = reinterpret_cast<float*>(to);
        for (int64_t key = 0; key < sizes_.keys; key += kLanes) {
            for (int64_t word = 0; word < kPanelWords<Word>; word += kLanes) {
                F32 block[kLanes];
                for (int i = 0; i < kLanes; ++i) {
                    const float* row = from + (key + i) * kPanel + word;
                    if (key + i >= shape_.tokens) block[i] = F32{};
                    else if constexpr (kDepth<Word> == 1) block[i] = load(row);
                    else block[i] = (F32)neighbours(load(row), load(row + kLanes));
                }
                transpose(block);
                for (int i = 0; i < kLanes; ++i) store(out + (word + i) * sizes_.keys + key, block[i]);
            }
        }
    }

    // ---- channel half ---------------------------------------------------------------------------------------------

    void channel_half_forward(float* to) {
        make_channel_weights();
        this->mix_channels(row_pairs(kept_logits_, squares_), this->channel_words(v(), v_factors_), to);
    }

    // kept_logits_ = P [channel of k][channel of q].
    void make_channel_weights() {
        this->turn_tokens(q(), q_tokens_), this->turn_tokens(k(), k_tokens_);
        this->multiply_channels(k_tokens_, q_tokens_, kept_logits_);
        for (int64_t a = 0; a < shape_.size; a += kLanes) {
            this->template softmax_one<float>(kept_logits_ + a, shape_.weight_stride, kLanes);
        }
    }

    // A matrix [d][weight_stride] as factors of a product over its rows: itself, or pairs in `to`.
    const Word* row_pairs(const float* matrix, float* to) const {
        if constexpr (kDepth<Word> == 1) return matrix;
        else {
            const int64_t d = shape_.size, stride = shape_.weight_stride;
            Word* pairs = reinterpret_cast<Word*>(to);
            for (int64_t row = 0; row < d; row += 2) {
                for (int64_t a = 0; a < d; a += kLanes) {
                    const F32 second = row + 1 < d ? load(matrix + (row + 1) * stride + a) : F32{};
                    store(pairs + row / 2 * stride + a, paired(load(matrix + row * stride + a), second));
                }
            }
            return pairs;
        }
    }

    void channel_half_backward() {
        const int64_t d = shape_.size, stride = shape_.weight_stride, matrix = sizes_.matrix;
        if (!sizes_.keeps) make_channel_weights();
        // dl is [channel of k][channel of q]; the next two are transposes; the last holds pairs.
        float *dl = squares_, *p_turned = dl + matrix, *dl_turned = p_turned + matrix, *pairs = dl_turned + matrix;
        const float* p = kept_logits_;
        this->turn_tokens(v(), k_tokens_), this->turn_tokens(out_, out_tokens_);
        this->multiply_channels(k_tokens_, out_tokens_, dl);
        for (int64_t a = 0; a < d; a += kLanes) differentiate_channels(p + a, dl + a);
        for (int64_t a = 0; a < d; ++a) {
            for (int64_t b = 0; b < d; ++b) {
                p_turned[a * stride + b] = p[b * stride + a], dl_turned[a * stride + b] = dl[b * stride + a];
            }
        }
        combine(row_pairs(dl, pairs), this->channel_words(k(), k_factors_), grad(0));
        combine(row_pairs(dl_turned, pairs), this->channel_words(q(), q_factors_), grad(1));
        combine(row_pairs(p_turned, pairs), this->channel_words(out_, out_factors_), grad(2));
        normalise_channels_backward(q(), grad(0), q_scales_), normalise_channels_backward(k(), grad(1), k_scales_);
    }

    // As differentiate_panel, for kLanes channels of q: p is P; dl is g on entry and dl on return.
    void differentiate_channels(const float* p, float* dl) const {
        const int64_t d = shape_.size, stride = shape_.weight_stride;
        F32 delta = {}, highest = {}, ties = {};
        for (int64_t at = 0; at < d * stride; at += stride) {
            delta = madd(load(p + at), load(dl + at), delta);
            highest = maximum(load(p + at), highest);
        }
        for (int64_t at = 0; at < d * stride; at += stride) {
            ties += load(p + at) == highest ? broadcast(1.0f) : F32{};
        }
        const F32 to_maximum = delta * highest / ties;
        for (int64_t at = 0; at < d * stride; at += stride) {
            const F32 probability = load(p + at), extra = probability == highest ? to_maximum : F32{};
            store(dl + at, probability * (load(dl + at) - delta) - extra);
        }
    }

    // to[a] = sum over b of weight[b][a] from[b], [d][pitch].
    void combine(const Word* weight, const Word* from, float* to) const {
        for (int64_t token = 0; token < sizes_.keys; token += kPanel) {
            for (int64_t c = 0; c < shape_.size; c += kTileRows) {
                const Tile tile = multiply(words<Word>(shape_.size), weight + c, shape_.weight_stride, from + token,
                                           shape_.pitch);
                store_tile(tile, to + c * shape_.pitch + token, shape_.pitch, shape_.size - c);
            }
        }
    }

    // Replaces grads by the gradient of the input of `normalise_channels`; rows is its output.
    void normalise_channels_backward(const float* rows, float* grads, const float* scales) {
        for (int64_t c = 0; c < shape_.size; ++c) {
            const float* row = rows + c * shape_.pitch;
            float* grad = grads + c * shape_.pitch;
            F32 dot = {};
            for (int64_t t = 0; t < sizes_.keys; t += kLanes) dot = madd(load(row + t), load(grad + t), dot);
            const F32 along = broadcast(scales[c] < 1.0f / kLeastNorm ? sum_of_lanes(dot) : 0.0f);
            for (int64_t t = 0; t < sizes_.keys; t += kLanes) {
                store(grad + t, scales[c] * (load(grad + t) - along * load(row + t)));
            }
        }
    }
};

}  // namespace swk::SWK_ISA
