// One head of one half of a window's attention: from the normalised tokens of the window to d rows of `attended`.
// Formulas: swda_block.h. Memory layout: q, k and v are rows [channel][pitch] of tokens.
//
// The 3d channels of a head are computed just before they are used, so only one head's q, k and v are in memory. MACs:
//   qkv and depth-wise convolution  3d (C + 9) N multiply-accumulates, kTileRows channels at a time through L1
//   window half                     2 d N^2, logits of one panel of queries at a time: [key][query], N * kPanel floats
//   channel half                    2 d^2 N
#pragma once

#include "tokens.h"

namespace swk::SWK_ISA {

constexpr float kLeastNorm = 1e-12f;  // lower bound of the norm, as in torch.nn.functional.normalize

// Sizes computed from C, heads and window, and the scratch of one head.
struct HeadShape {
    int64_t channels, heads, window;
    int64_t tokens, panels;      // N and its panels
    int64_t size, padded_size;   // d, and d in whole tiles
    int64_t rows;                // 3d in whole tiles: qkv's rows of a head
    int64_t pitch;               // floats between consecutive channels of q, k and v
    int64_t weight_stride;       // floats between rows of the channel half's [channel of k][channel of q]
    int64_t plane;               // floats of one channel of a window with a border of zeros
    int64_t bias_floats;
    bool whole_rows;             // a vector of tokens is one row of the window, or two
    bool in_table;               // every vector of queries is inside one row of the window: bias read from the table
    int64_t scratch_planes, scratch_qkv, scratch_values, scratch_logits, scratch_floats;

    HeadShape(int64_t channels, int64_t heads, int64_t window) : channels(channels), heads(heads), window(window) {
        tokens = window * window;
        panels = (tokens + kPanel - 1) / kPanel;
        size = channels / 2 / heads;
        padded_size = filled(size, kTileRows);
        rows = filled(3 * size, kTileRows);
        // The last vector of a row may write kLanes - 1 floats past its end, a tile of keys reads kTileRows - 1 floats
        // past it. An odd number of cache lines, so that channels do not fall into the same few sets of the L1 cache.
        pitch = (filled(panels * kPanel + 16, 16) / 16 | 1) * 16;
        plane = filled((window + 2) * (window + 1) + 1 + kLanes, 16);
        whole_rows = window == kLanes || 2 * window == kLanes;
        in_table = window % kLanes == 0;
        bias_floats = in_table ? (2 * window - 1) * (2 * window - 1) : panels * tokens * kPanel;
        scratch_planes = kTileRows * plane;
        scratch_qkv = 3 * size * pitch;
        weight_stride = filled(size, kPanel);
        // v of the window half, or q and k of the channel half; a panel of q may reach past its last row.
        scratch_values = filled(2 * (tokens + 1) * padded_size + kPanel, 16);
        const int64_t weights = size * weight_stride;
        scratch_logits = filled(tokens * kPanel > weights ? tokens * kPanel : weights, 16);
        scratch_floats = scratch_planes + scratch_qkv + scratch_values + scratch_logits;
    }

};

// Regions of the rolled map inside a window: -100 is added to the logits of tokens from different ones.
struct Regions {
    bool several;
    const float* of_token;  // [panels * kPanel]
};

// Word holds factors of products (base/tile.h). Those of q, k, v and the softmax replace the float32 values in place.
template <class Word>
class HeadOf {
public:
    HeadOf(const HeadShape& shape, const AttentionWeights& weights, float* scratch)
        : shape_(shape),
          weights_(weights),
          planes_(scratch),
          qkv_(planes_ + shape.scratch_planes),
          values_(qkv_ + shape.scratch_qkv),
          logits_(values_ + shape.scratch_values) {
        for (int64_t i = 0; i < shape.scratch_planes; ++i) planes_[i] = 0.0f;  // the borders stay 0
    }

    // Head `head` of the window half (half 0) or the channel half (half 1).
    // normed: [panel][word of C][kPanel]; attended: [panel][C][kPanel], of which the head's d channels are written.
    void attend(const Word* normed, const Regions& regions, int half, int64_t head, float* attended) {
        project(normed, half * shape_.heads + head);
        float* to = attended + (half * shape_.channels / 2 + head * shape_.size) * kPanel;
        if (half) return channel_half(to);
        if (regions.several) return window_half<true>(regions.of_token, head, to);
        window_half<false>(regions.of_token, head, to);
    }

protected:
    const HeadShape& shape_;
    const AttentionWeights& weights_;
    float *planes_, *qkv_, *values_, *logits_;

    float* q() { return qkv_; }
    float* k() { return qkv_ + shape_.size * shape_.pitch; }
    float* v() { return qkv_ + 2 * shape_.size * shape_.pitch; }

    static Word* factors(float* rows) { return reinterpret_cast<Word*>(rows); }

    // qkv_ = dwconv(qkv weights of `unit` times normed), [3d][pitch], zeros after the last token.
    void project(const Word* normed, int64_t unit) {
        const int64_t depth = words<Word>(shape_.channels), first = unit * shape_.rows;
        for (int64_t row = 0; row < 3 * shape_.size; row += kTileRows) {
            const Word* a = weight_words<Word>(weights_.qkv) + (first + row) * depth;
            for (int64_t panel = 0; panel < shape_.panels; ++panel) {
                const Tile tile = multiply(depth, a, kTileRows, normed + panel * depth * kPanel, kPanel);
                if (shape_.whole_rows) store_rows(tile, weights_.qkv.bias + first + row, row, panel, qkv_);
                else spread(tile, weights_.qkv.bias + first + row, panel * kPanel);
            }
            for (int r = 0; r < kTileRows && row + r < 3 * shape_.size; ++r) {
                const float* taps = weights_.dwconv + (first + row + r) * 9;
                F32 tap[9];
                for (int i = 0; i < 9; ++i) tap[i] = broadcast(taps[i]);
                const float bias = weights_.dwconv_bias[first + row + r];
                float* to = qkv_ + (row + r) * shape_.pitch;
                if (shape_.whole_rows) convolve_rows(tap, bias, to);
                else convolve(planes_ + r * shape_.plane, tap, bias, to);
            }
        }
    }

    // Stores a tile of a panel's tokens in rows `row` to row + kTileRows - 1 of `rows` [3d][pitch], as far as there are.
    void store_rows(const Tile& tile, const float* bias, int64_t row, int64_t panel, float* rows) const {
        float* to = rows + row * shape_.pitch + panel * kPanel;
        for (int r = 0; r < kTileRows && row + r < 3 * shape_.size; ++r, to += shape_.pitch) {
            for (int v = 0; v < kPanelVectors; ++v) store(to + v * kLanes, tile.row[r][v] + broadcast(bias[r]));
        }
    }

    // 3x3 convolution of one channel in place, of a window with whole rows.
    void convolve_rows(const F32 (&tap)[9], float bias, float* row) {
        if (shape_.window == kLanes) convolve_rows<kLanes>(tap, bias, row);
        else convolve_rows<kLanes / 2>(tap, bias, row);
    }

    // 3x3 convolution of one channel in place, of a window with rows of `Row` tokens, one or two in a vector. The taps
    // of each column are summed first; their sums then move to the neighbour, so that there is no unaligned load.
    template <int Row>
    void convolve_rows(const F32 (&tap)[9], float bias, float* row) {
        F32 before = {}, here = load(row);
        for (int64_t t = 0; t < shape_.tokens; t += kLanes) {
            const F32 after = t + kLanes < shape_.tokens ? load(row + t + kLanes) : F32{};
            const F32 above = Row == kLanes ? before : middle(before, here, Lanes{});
            const F32 below = Row == kLanes ? after : middle(here, after, Lanes{});
            F32 column[3] = {F32{}, broadcast(bias), F32{}};
            for (int i = 0; i < 3; ++i) {
                column[i] = madd(tap[i], above, column[i]);
                column[i] = madd(tap[3 + i], here, column[i]);
                column[i] = madd(tap[6 + i], below, column[i]);
            }
            store(row + t, column[1] + (moved<Row, 1>(column[0], Lanes{}) + moved<Row, -1>(column[2], Lanes{})));
            before = here, here = after;
        }
        for (int64_t t = shape_.tokens; t < shape_.panels * kPanel; ++t) row[t] = 0.0f;
    }

    // Stores the tokens of a tile in the planes: token (y, x) at 1 + (y + 1) * (w + 1) + x, so that the zero on the
    // right of a row is also the zero on the left of the next one.
    void spread(const Tile& tile, const float* bias, int64_t token) {
        const int64_t w = shape_.window;
        for (int v = 0; v < kPanelVectors; ++v, token += kLanes) {
            if (shape_.in_table) {
                if (token >= shape_.tokens) return;
                float* to = planes_ + 1 + (token / w + 1) * (w + 1) + token % w;
                for (int r = 0; r < kTileRows; ++r) {
                    store(to + r * shape_.plane, tile.row[r][v] + broadcast(bias[r]));
                }
                continue;
            }
            for (int lane = 0; lane < kLanes && token + lane < shape_.tokens; ++lane) {
                float* to = planes_ + 1 + ((token + lane) / w + 1) * (w + 1) + (token + lane) % w;
                for (int r = 0; r < kTileRows; ++r) to[r * shape_.plane] = tile.row[r][v][lane] + bias[r];
            }
        }
    }

    // 3x3 convolution of one plane. The last vector of a row may overwrite the start of the next row, so the last
    // vectors of all rows are computed first.
    void convolve(const float* plane, const F32 (&tap)[9], float bias, float* to) {
        const int64_t w = shape_.window, pitch = w + 1;
        for (int64_t x = (w - 1) / kLanes * kLanes; x >= 0; x -= kLanes) {
            const float* from = plane + x;
            F32 above[3], here[3], below[3];
            for (int i = 0; i < 3; ++i) above[i] = load(from + i), here[i] = load(from + pitch + i);
            for (int64_t y = 0; y < w; ++y) {
                for (int i = 0; i < 3; ++i) below[i] = load(from + (y + 2) * pitch + i);
                F32 sum = broadcast(bias);
                for (int i = 0; i < 3; ++i) sum = madd(tap[i], above[i], sum);
                for (int i = 0; i < 3; ++i) sum = madd(tap[3 + i], here[i], sum);
                for (int i = 0; i < 3; ++i) sum = madd(tap[6 + i], below[i], sum);
                store(to + y * w + x, sum);
                for (int i = 0; i < 3; ++i) above[i] = here[i], here[i] = below[i];
            }
        }
        for (int64_t i = shape_.tokens; i < shape_.panels * kPanel; ++i) to[i] = 0.0f;
    }

    // rows[c][t] *= factor / max(norm over c, 1e-12), as factors of a product over c, [word][pitch]. The quotients are
    // stored in `scales` [t] unless it is null.
    template <class To = Word>
    void normalise_tokens(float* rows, float factor, float* scales = nullptr) {
        for (int64_t t = 0; t < shape_.panels * kPanel; t += kLanes) {
            F32 square[2] = {};
            for (int64_t c = 0; c < shape_.size; c += 2) {
                for (int i = 0; i < 2 && c + i < shape_.size; ++i) {  // unrolled, so that the sums are in registers
                    const F32 value = load(rows + (c + i) * shape_.pitch + t);
                    square[i] = madd(value, value, square[i]);
                }
            }
            const F32 scale = factor / maximum(square_root(square[0] + square[1]), broadcast(kLeastNorm));
            if (scales) store(scales + t, scale);
            for (int64_t c = 0; c < shape_.size; c += kDepth<To>) {
                F32 scaled[kDepth<To>] = {};
                for (int i = 0; i < kDepth<To> && c + i < shape_.size; ++i) {
                    scaled[i] = load(rows + (c + i) * shape_.pitch + t) * scale;
                }
                store_depth(reinterpret_cast<To*>(rows) + t, shape_.pitch, c, scaled);
            }
        }
    }

    // Rows [c][pitch] as factors of a product over the channels, [word][pitch]: what is there, or pairs in `to`, which may
    // be the same memory.
    const Word* channel_words(const float* rows, Word* to) const {
        if constexpr (kDepth<Word> == 1) return rows;
        else {
            for (int64_t t = 0; t < shape_.panels * kPanel; t += kLanes) {
                for (int64_t c = 0; c < shape_.size; c += 2) {
                    const float* row = rows + c * shape_.pitch + t;
                    const F32 second = c + 1 < shape_.size ? load(row + shape_.pitch) : F32{};
                    store(to + c / 2 * shape_.pitch + t, paired(load(row), second));
                }
            }
            return to;
        }
    }

    template <bool Masked>
    void window_half(const float* region, int64_t head, float* to) {
        normalise_tokens(q(), weights_.scale[head]);
        normalise_tokens(k(), 1.0f);
        turn_tokens(v(), factors(values_));
        for (int64_t panel = 0; panel < shape_.panels; ++panel) {
            F32 highest[kPanelVectors];
            make_logits<Masked>(factors(q()), factors(k()), region, head, panel, highest);
            F32 sum[kPanelVectors];
            Word* powers = factors(logits_);
            for (int v = 0; v < kPanelVectors; ++v) {
                sum[v] = exponentiate(logits_ + v * kLanes, highest[v], powers + v * kLanes);
            }
            mix_values(powers, sum, to + panel * shape_.channels * kPanel);
        }
    }

    // to [word of tokens][padded_size] = rows [d][pitch], factors of a product over the tokens. The padding only affects
    // output rows that are not read.
    void turn_tokens(const float* rows, Word* to) const {
        const int64_t d = shape_.size, length = words<Word>(shape_.tokens);
        float* out = reinterpret_cast<float*>(to);
        for (int64_t word = 0; word < length; word += kLanes) {
            const int64_t count = length - word < kLanes ? length - word : kLanes;
            for (int64_t c = 0; c < shape_.padded_size; c += kLanes) {
                const int width = left_lanes(shape_.padded_size - c);
                F32 block[kLanes];
                for (int i = 0; i < kLanes; ++i) {
                    const float* row = rows + (c + i) * shape_.pitch + word * kDepth<Word>;
                    if (c + i >= d) block[i] = F32{};
                    else if constexpr (kDepth<Word> == 1) block[i] = load(row);
                    else block[i] = (F32)neighbours(load(row), load(row + kLanes));
                }
                transpose(block);
                for (int i = 0; i < count; ++i) store(out + (word + i) * shape_.padded_size + c, 1, width, block[i]);
            }
        }
    }

    // Computes logits_ [key][query] of one panel of queries, and the maximum of each query.
    template <bool Masked>
    void make_logits(const Word* queries, const Word* keys, const float* region, int64_t head, int64_t panel,
                     F32 (&highest)[kPanelVectors]) {
        const int64_t w = shape_.window, tokens = shape_.tokens, query = panel * kPanel;
        const float* bias[kPanelVectors];
        F32 own_region[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) {
            const int64_t i = query + v * kLanes;
            bias[v] = weights_.bias + head * shape_.bias_floats;
            // Queries after the last token are not used; they read the bias of query 0.
            if (shape_.in_table && i < tokens) bias[v] += (i / w + w - 1) * (2 * w - 1) + i % w + w - 1;
            if (shape_.in_table && i >= tokens) bias[v] += (w - 1) * (2 * w - 1) + w - 1;
            if (!shape_.in_table) bias[v] += panel * tokens * kPanel + v * kLanes;
            if constexpr (Masked) own_region[v] = load(region + i);
            highest[v] = broadcast(-__builtin_inff());
        }
        for (int64_t first = 0; first < tokens; first += kTileRows) {
            const Tile tile =
                multiply(words<Word>(shape_.size), keys + first, shape_.pitch, queries + query, shape_.pitch);
            const int valid = tokens - first < kTileRows ? static_cast<int>(tokens - first) : kTileRows;
            for (int r = 0; r < kTileRows && r < valid; ++r) {
                const int64_t key = first + r;
                const int64_t step = shape_.in_table ? -(key / w * (2 * w - 1) + key % w) : key * kPanel;
                for (int v = 0; v < kPanelVectors; ++v) {
                    F32 logit = tile.row[r][v] + load(bias[v] + step);
                    if constexpr (Masked) {
                        logit += own_region[v] != broadcast(region[key]) ? broadcast(-100.0f) : F32{};
                    }
                    highest[v] = maximum(highest[v], logit);
                    store(logits_ + key * kPanel + v * kLanes, logit);
                }
            }
        }
    }

    // to = exp(column - highest) over the tokens, as factors of a product over them; it may be the same memory. Returns the
    // sum.
    F32 exponentiate(const float* column, F32 highest, Word* to) const {
        F32 sum[4] = {};
        for (int64_t first = 0; first < shape_.tokens; first += 4) {
            // Unrolled, so that the sums are in registers.
            for (int part = 0; part < 4 && first + part < shape_.tokens; part += kDepth<Word>) {
                F32 value[kDepth<Word>] = {};
                for (int i = 0; i < kDepth<Word> && first + part + i < shape_.tokens; ++i) {
                    value[i] = exponential(load(column + (first + part + i) * kPanel) - highest);
                    sum[part + i] += value[i];
                }
                store_depth(to, kPanel, first + part, value);
            }
        }
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }

    // to [d][kPanel] = attended values of the panel's queries.
    void mix_values(const Word* powers, const F32 (&sum)[kPanelVectors], float* to) const {
        F32 inverse[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) inverse[v] = 1.0f / (sum[v] + 1.0f);
        for (int64_t c = 0; c < shape_.size; c += kTileRows) {
            const Tile tile = multiply(words<Word>(shape_.tokens), factors(values_) + c, shape_.padded_size,
                                       powers, kPanel);
            const int valid = shape_.size - c < kTileRows ? static_cast<int>(shape_.size - c) : kTileRows;
            for (int r = 0; r < kTileRows && r < valid; ++r) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    store(to + (c + r) * kPanel + v * kLanes, tile.row[r][v] * inverse[v]);
                }
            }
        }
    }

    // softmax_one over the channels of k of (q k^T over the tokens), times v.
    void channel_half(float* to) {
        normalise_channels(q()), normalise_channels(k());
        Word *q_turned = factors(values_), *k_turned = q_turned + words<Word>(shape_.tokens) * shape_.padded_size;
        turn_tokens(q(), q_turned), turn_tokens(k(), k_turned);
        float* weight = logits_;
        multiply_channels(k_turned, q_turned, weight);
        for (int64_t a = 0; a < shape_.size; a += kLanes) softmax_one(weight + a, shape_.weight_stride, kLanes);
        mix_channels(factors(weight), channel_words(v(), factors(v())), to);
    }

    // to [channel of left][weight_stride] = left right^T, both turned.
    void multiply_channels(const Word* left, const Word* right, float* to) const {
        const int64_t d = shape_.size, stride = shape_.weight_stride, depth = words<Word>(shape_.tokens);
        for (int64_t b = 0; b < d; b += kTileRows) {
            for (int64_t a = 0; a < d; a += kPanel) {  // what is read after the last channel makes unused columns
                const Tile tile = multiply(depth, left + b, shape_.padded_size, right + a, shape_.padded_size);
                store_tile(tile, to + b * stride + a, stride, d - b);
            }
        }
    }

    // to [panel][C][kPanel]: its d channels = weight^T values, over [word of d][weight_stride] and [word of d][pitch].
    void mix_channels(const Word* weight, const Word* values, float* to) const {
        for (int64_t panel = 0; panel < shape_.panels; ++panel) {
            for (int64_t c = 0; c < shape_.size; c += kTileRows) {
                const Tile tile = multiply(words<Word>(shape_.size), weight + c, shape_.weight_stride,
                                           values + panel * kPanel, shape_.pitch);
                store_tile(tile, to + panel * shape_.channels * kPanel + c * kPanel, kPanel, shape_.size - c);
            }
        }
    }

    // rows[c][t] /= max(norm over t, 1e-12). The factors are stored in `scales` [c] unless it is null.
    void normalise_channels(float* rows, float* scales = nullptr) {
        const int64_t length = shape_.panels * kPanel;
        for (int64_t c = 0; c < shape_.size; ++c) {
            float* row = rows + c * shape_.pitch;
            F32 square[kPanelVectors] = {};
            for (int64_t t = 0; t < length; t += kPanel) {
                for (int v = 0; v < kPanelVectors; ++v) {
                    const F32 value = load(row + t + v * kLanes);
                    square[v] = madd(value, value, square[v]);
                }
            }
            const float norm = __builtin_sqrtf(sum_of_lanes(square[0] + square[1]));
            const F32 scale = broadcast(1.0f / (norm > kLeastNorm ? norm : kLeastNorm));
            if (scales) scales[c] = scale[0];
            for (int64_t t = 0; t < length; t += kLanes) store(row + t, load(row + t) * scale);
        }
    }

    // In place down each of `count` columns of d elements, as factors of a product over the d. Pairs need all lanes.
    template <class To = Word>
    void softmax_one(float* columns, int64_t stride, int count) {
        F32 highest = load(columns, 1, count), sum = {};
        for (int64_t b = 1; b < shape_.size; ++b) highest = maximum(load(columns + b * stride, 1, count), highest);
        for (int64_t b = 0; b < shape_.size; ++b) {
            const F32 value = exponential(load(columns + b * stride, 1, count) - highest);
            store(columns + b * stride, 1, count, value);
            sum += value;
        }
        for (int64_t b = 0; b < shape_.size; b += kDepth<To>) {
            F32 value[kDepth<To>] = {};
            for (int i = 0; i < kDepth<To> && b + i < shape_.size; ++i) {
                value[i] = load(columns + (b + i) * stride, 1, count) / (sum + 1.0f);
            }
            if (count == kLanes) store_depth(reinterpret_cast<To*>(columns), stride, b, value);
            else store(columns + b * stride, 1, count, value[0]);
        }
    }
};

}  // namespace swk::SWK_ISA
