// The gradient of one head of one half of a window's attention (formula: swda_core.h), in the layout of attention.h.
//
// The forward pass is computed again from the head's 3d channels of qkv. The window half proceeds by panels of queries:
//   l, P and g of a panel are [key][query]; dq sums over keys; dv and dk sum over queries and need the transpose.
//   5 d N^2 multiply-accumulates (l, g, dq, dk, dv), N^2 exponentials, two transpositions of N^2 elements.
// Channel half: 5 d^2 N multiply-accumulates. Convolution: 3 * 27 d N (forward, gradients of input and of weights).
#pragma once

#include "attention.h"

namespace swk::SWK_ISA {

// Scratch of HeadGradient in addition to that of Head.
struct GradientShape {
    int64_t keys;  // N in whole panels
    int64_t rows, grads, out, transposed, panel, square, planes, scales, floats;

    explicit GradientShape(const HeadShape& shape) {
        keys = shape.panels * kPanel;
        rows = 3 * shape.size * shape.pitch;            // qkv before the depth-wise convolution, then its gradient
        grads = rows;                                   // gradient after it
        out = shape.size * shape.pitch;                 // gradient of the head's output
        transposed = HeadShape::up(shape.tokens * shape.padded_size, 16);  // one of q, k, out: [token][padded_size]
        panel = HeadShape::up(shape.tokens * kPanel, 16);                  // [key][query]
        square = kPanel * keys;                                            // [query][key]
        planes = shape.plane;
        scales = shape.pitch;
        floats = rows + grads + out + 3 * transposed + panel + 2 * square + planes + 2 * scales;
        // The channel half takes four d x d matrices from the two squares.
        const int64_t matrices = 4 * HeadShape::up(shape.size * shape.padded_size, 16);
        if (matrices > 2 * square) floats += matrices - 2 * square;
    }
};

class HeadGradient : public Head {
public:
    HeadGradient(const HeadShape& shape, const GradientShape& sizes, const AttentionWeights& weights, float* scratch)
        : Head(shape, weights, scratch), sizes_(sizes) {
        float* next = scratch + shape.scratch_floats;
        const auto take = [&next](int64_t floats) { return next += floats, next - floats; };
        rows_ = take(sizes.rows), grads_ = take(sizes.grads), out_ = take(sizes.out);
        q_tokens_ = take(sizes.transposed), k_tokens_ = take(sizes.transposed), out_tokens_ = take(sizes.transposed);
        logit_grads_ = take(sizes.panel), plane_ = take(sizes.planes);
        q_scales_ = take(sizes.scales), k_scales_ = take(sizes.scales);
        squares_ = next;  // last, because the channel half may need more than 2 squares
        for (int64_t i = 0; i < sizes.planes; ++i) plane_[i] = 0.0f;
    }

    // [3d][pitch], zeros after the last token. Input: qkv. `backward` replaces it by its gradient.
    float* rows() { return rows_; }
    // [d][pitch], zeros after the last token. Input: the gradient of the head's output.
    float* out() { return out_; }

    // Computes the head's output from rows(); `attended` as in Head::attend.
    void forward(const Regions& regions, int half, int64_t head, float* attended) {
        convolve_rows(half * shape_.heads + head);
        if (half) return channel_half(attended);
        if (regions.several) return window_half<true>(regions.of_token, head, attended);
        window_half<false>(regions.of_token, head, attended);
    }

    // dwconv [3d][10]; bias [(2w-1)^2] and log_scale [1] are written by the window half only.
    void backward(const Regions& regions, int half, int64_t head, float* dwconv, float* bias, float* log_scale) {
        const int64_t unit = half * shape_.heads + head;
        convolve_rows(unit);
        if (half) {
            channel_half_backward();
        } else {
            const int64_t table = (2 * shape_.window - 1) * (2 * shape_.window - 1);
            for (int64_t i = 0; i < table; ++i) bias[i] = 0.0f;
            if (regions.several) window_half_backward<true>(regions.of_token, head, bias);
            else window_half_backward<false>(regions.of_token, head, bias);
            *log_scale = normalise_tokens_backward(q(), grad(0), q_scales_, weights_.scale[head]);
            normalise_tokens_backward(k(), grad(1), k_scales_, 1.0f);
        }
        convolve_backward(unit, dwconv);
    }

private:
    const GradientShape& sizes_;
    float *rows_, *grads_, *out_, *q_tokens_, *k_tokens_, *out_tokens_, *logit_grads_, *squares_, *plane_;
    float *q_scales_, *k_scales_;

    // Gradient of q, k or v after the convolution: [d][pitch].
    float* grad(int part) { return grads_ + part * shape_.size * shape_.pitch; }

    // Copies a row of tokens into a plane; the border of zeros is not touched.
    void fill_plane(const float* row, float* plane) {
        const int64_t w = shape_.window;
        for (int64_t y = 0; y < w; ++y) {
            float* to = plane + 1 + (y + 1) * (w + 1);
            for (int64_t x = 0; x < w; ++x) to[x] = row[y * w + x];
        }
    }

    // qkv_ = dwconv(rows_).
    void convolve_rows(int64_t unit) {
        for (int64_t row = 0; row < 3 * shape_.size; ++row) {
            const int64_t at = unit * shape_.rows + row;
            F32 tap[9];
            for (int i = 0; i < 9; ++i) tap[i] = broadcast(weights_.dwconv[at * 9 + i]);
            fill_plane(rows_ + row * shape_.pitch, planes_);
            convolve(planes_, tap, weights_.dwconv_bias[at], qkv_ + row * shape_.pitch);
        }
    }

    // Replaces rows_ by its gradient, computed from grads_; gradients of taps and bias of row r go to dwconv + 10 r.
    void convolve_backward(int64_t unit, float* dwconv) {
        const int64_t w = shape_.window, pitch = w + 1, first = 1 + pitch, last = first + w * pitch;
        for (int64_t row = 0; row < 3 * shape_.size; ++row) {
            float* line = rows_ + row * shape_.pitch;
            fill_plane(line, planes_);
            fill_plane(grads_ + row * shape_.pitch, plane_);
            // Both planes have borders of zeros, so one pass over the whole plane gives all nine sums of products.
            F32 sum[10] = {};
            for (int64_t i = first; i < last; i += kLanes) {
                const F32 value = load(plane_ + i);
                for (int tap = 0; tap < 9; ++tap) {
                    sum[tap] = madd(value, load(planes_ + i + (tap / 3 - 1) * pitch + tap % 3 - 1), sum[tap]);
                }
                sum[9] += value;
            }
            for (int tap = 0; tap < 10; ++tap) dwconv[row * 10 + tap] = sum_of_lanes(sum[tap]);
            F32 flipped[9];
            const float* taps = weights_.dwconv + (unit * shape_.rows + row) * 9;
            for (int i = 0; i < 9; ++i) flipped[i] = broadcast(taps[8 - i]);
            convolve(plane_, flipped, 0.0f, line);
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
    void window_half_backward(const float* region, int64_t head, float* bias) {
        normalise_tokens(q(), weights_.scale[head], q_scales_);
        normalise_tokens(k(), 1.0f, k_scales_);
        transpose_rows(q(), shape_.tokens, q_tokens_), transpose_rows(k(), shape_.tokens, k_tokens_);
        transpose_rows(out_, shape_.tokens, out_tokens_);
        for (int64_t i = 0; i < 2 * shape_.size * shape_.pitch; ++i) grad(1)[i] = 0.0f;
        for (int64_t panel = 0; panel < shape_.panels; ++panel) {
            F32 highest[kPanelVectors];
            make_logits<Masked>(region, head, panel, highest);
            for (int v = 0; v < kPanelVectors; ++v) differentiate_column(v, panel, highest[v]);
            add_bias_gradient(panel, bias);
            sum_over_keys(panel);
            sum_over_queries(panel);
        }
    }

    // For one vector of queries: replaces logits_ by P and writes dl to logit_grads_.
    void differentiate_column(int v, int64_t panel, F32 highest) {
        float *p = logits_ + v * kLanes, *dl = logit_grads_ + v * kLanes;
        F32 ties;
        const F32 inverse = 1.0f / (exponentiate_marking(p, highest, ties) + 1.0f);
        F32 delta = {};
        const float* grad_out = out_ + panel * kPanel + v * kLanes;
        for (int64_t first = 0; first < shape_.tokens; first += kTileRows) {
            F32 g[kTileRows] = {};
            for (int64_t c = 0; c < shape_.size; ++c) {
                const F32 right = load(grad_out + c * shape_.pitch);
                const float* left = this->v() + c * shape_.pitch + first;
#pragma GCC unroll 16
                for (int r = 0; r < kTileRows; ++r) g[r] = madd(broadcast(left[r]), right, g[r]);
            }
            for (int r = 0; r < kTileRows && first + r < shape_.tokens; ++r) {
                const int64_t at = (first + r) * kPanel;
                const F32 marked = load(p + at) * inverse;
                delta = madd(maximum(marked, -marked), g[r], delta);
                store(p + at, marked);
                store(dl + at, g[r]);
            }
        }
        const F32 to_maximum = delta * inverse / ties;
        for (int64_t at = 0; at < shape_.tokens * kPanel; at += kPanel) {
            const F32 marked = load(p + at), probability = maximum(marked, -marked);
            const F32 extra = marked < F32{} ? to_maximum : F32{};
            store(p + at, probability);
            store(dl + at, probability * (load(dl + at) - delta) - extra);
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

    // Gradient of q of the panel, [d][query].
    void sum_over_keys(int64_t panel) {
        for (int64_t c = 0; c < shape_.size; c += kTileRows) {
            const Tile tile = multiply(shape_.tokens, k_tokens_ + c, shape_.padded_size, logit_grads_, kPanel);
            for (int r = 0; r < kTileRows && c + r < shape_.size; ++r) {
                float* to = grad(0) + (c + r) * shape_.pitch + panel * kPanel;
                for (int v = 0; v < kPanelVectors; ++v) store(to + v * kLanes, tile.row[r][v]);
            }
        }
    }

    // Adds the contribution of the panel's queries to the gradients of k and v, [d][key].
    void sum_over_queries(int64_t panel) {
        float *p = squares_, *dl = squares_ + sizes_.square;
        transpose_panel(logits_, p), transpose_panel(logit_grads_, dl);
        const int64_t first = panel * kPanel, left = shape_.tokens - first, depth = left < kPanel ? left : kPanel;
        for (int64_t c = 0; c < shape_.size; c += kTileRows) {
            const int64_t at = first * shape_.padded_size + c;
            for (int64_t key = 0; key < sizes_.keys; key += kPanel) {
                add(multiply(depth, q_tokens_ + at, shape_.padded_size, dl + key, sizes_.keys), c, key, grad(1));
                add(multiply(depth, out_tokens_ + at, shape_.padded_size, p + key, sizes_.keys), c, key, grad(2));
            }
        }
    }

    void add(const Tile& tile, int64_t c, int64_t token, float* rows) {
        for (int r = 0; r < kTileRows && c + r < shape_.size; ++r) {
            float* at = rows + (c + r) * shape_.pitch + token;
            for (int v = 0; v < kPanelVectors; ++v) store(at + v * kLanes, load(at + v * kLanes) + tile.row[r][v]);
        }
    }

    // [key][query] -> [query][keys], zeros after the last key.
    void transpose_panel(const float* from, float* to) {
        for (int64_t key = 0; key < sizes_.keys; key += kLanes) {
            for (int64_t query = 0; query < kPanel; query += kLanes) {
                F32 block[kLanes];
                for (int i = 0; i < kLanes; ++i) {
                    block[i] = key + i < shape_.tokens ? load(from + (key + i) * kPanel + query) : F32{};
                }
                transpose(block);
                for (int i = 0; i < kLanes; ++i) store(to + (query + i) * sizes_.keys + key, block[i]);
            }
        }
    }

    // ---- channel half ---------------------------------------------------------------------------------------------

    void channel_half_backward() {
        const int64_t d = shape_.size, stride = shape_.padded_size, matrix = HeadShape::up(d * stride, 16);
        // p and dl are [channel of k][channel of q]; the last two are their transposes.
        float *p = squares_, *dl = p + matrix, *p_turned = dl + matrix, *dl_turned = p_turned + matrix;
        for (int64_t i = 0; i < 4 * matrix; ++i) p[i] = 0.0f;
        normalise_channels(q(), q_scales_), normalise_channels(k(), k_scales_);
        for (int64_t a = 0; a < d; a += kGramSide) {
            for (int64_t b = 0; b < d; b += kGramSide) gram(q(), k(), a, b, p), gram(out_, v(), a, b, dl);
        }
        for (int64_t a = 0; a < d; a += kLanes) softmax_one(p + a, stride, left_lanes(d - a));
        for (int64_t a = 0; a < d; ++a) differentiate_channel(p + a, dl + a);
        for (int64_t a = 0; a < d; ++a) {
            for (int64_t b = 0; b < d; ++b) {
                p_turned[a * stride + b] = p[b * stride + a], dl_turned[a * stride + b] = dl[b * stride + a];
            }
        }
        combine(dl, k(), grad(0)), combine(dl_turned, q(), grad(1)), combine(p_turned, out_, grad(2));
        normalise_channels_backward(q(), grad(0), q_scales_), normalise_channels_backward(k(), grad(1), k_scales_);
    }

    // As differentiate_column, for one channel of q: p is P; dl is g on entry and dl on return.
    void differentiate_channel(const float* p, float* dl) {
        const int64_t stride = shape_.padded_size;
        float delta = 0.0f, highest = 0.0f, ties = 0.0f;
        for (int64_t b = 0; b < shape_.size; ++b) {
            delta += p[b * stride] * dl[b * stride];
            if (p[b * stride] > highest) highest = p[b * stride];
        }
        for (int64_t b = 0; b < shape_.size; ++b) ties += p[b * stride] == highest;
        for (int64_t b = 0; b < shape_.size; ++b) {
            const float extra = p[b * stride] == highest ? delta * highest / ties : 0.0f;
            dl[b * stride] = p[b * stride] * (dl[b * stride] - delta) - extra;
        }
    }

    // to[a] = sum over b of weight[b][a] from[b], [d][pitch].
    void combine(const float* weight, const float* from, float* to) {
        for (int64_t token = 0; token < sizes_.keys; token += kPanel) {
            for (int64_t c = 0; c < shape_.size; c += kTileRows) {
                const Tile tile = multiply(shape_.size, weight + c, shape_.padded_size, from + token, shape_.pitch);
                for (int r = 0; r < kTileRows && c + r < shape_.size; ++r) {
                    float* at = to + (c + r) * shape_.pitch + token;
                    for (int v = 0; v < kPanelVectors; ++v) store(at + v * kLanes, tile.row[r][v]);
                }
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
