// Sums of the gradients of weights in chunks of windows, and their sum over the chunks. Each chunk has a set of its own,
// which one thread fills; the sets are added in order.
//
//   product, transposed product    [rows][turned_columns]    weight_gradients.h; rows of the weight, or its columns
//   lanes                          [rows][kLanes]            their sum is one number of the gradient
//   numbers                        [rows][columns]
#pragma once

#include "../base/parallel.h"
#include "swda_backward.h"
#include "weight_gradients.h"

namespace swk::SWK_ISA {

class ChunkSums {
public:
    // Of swda_attention with hidden = 0, of gated_ffn with heads = 0. What `attention` and `ffn` do not want has no
    // sums, but keeps its place.
    ChunkSums(int64_t channels, int64_t heads, int64_t window, int64_t hidden, const AttentionGradients& attention,
              const FfnGradients& ffn)
        : heads_(heads) {
        const int64_t side = 2 * window - 1;
        if (heads) {
            add(attention.norm, 2 * channels, 1, kSumOfLanes), add(attention.qkv, 3 * channels, channels, kByHead);
            add(attention.qkv_bias, 3 * channels, 1, kLanesByHead);
            add(attention.dwconv, 3 * channels, 10, kLanesByHead), add(attention.proj, channels, channels, kTransposed);
            add(attention.proj_bias, channels, 1, kSumOfLanes), add(attention.bias, heads, side * side, kNumbers);
            add(attention.log_scale, 1, heads, kNumbers);
        }
        if (hidden) {
            add(ffn.norm, 2 * channels, 1, kSumOfLanes), add(ffn.in, 2 * hidden, channels, kProduct);
            add(ffn.in_bias, 2 * hidden, 1, kSumOfLanes), add(ffn.out, hidden, channels, kTransposed);
            add(ffn.out_bias, channels, 1, kSumOfLanes);
        }
    }

    int64_t floats() const { return floats_; }

    // The sums of the chunk at `chunk`, set to 0.
    void begin(float* chunk, AttentionGradients& attention, FfnGradients& ffn) const {
        float* at[kMost];
        for (int i = 0; i < count_; ++i) {
            const Kind& kind = kinds_[i];
            at[i] = kind.out ? chunk + kind.at : nullptr;
            for (int64_t f = 0; kind.out && f < kind.rows * kind.step; ++f) at[i][f] = 0.0f;
        }
        float** next = at;
        if (heads_) attention = {next[0], next[1], next[2], next[3], next[4], next[5], next[6], next[7]}, next += 8;
        if (next < at + count_) ffn = {next[0], next[1], next[2], next[3], next[4]};
    }

    // Writes the gradients: the sums over all chunks at `sums`.
    void add_up(const float* sums, int64_t chunks, int threads) const {
        for (int i = 0; i < count_; ++i) {
            const Kind& kind = kinds_[i];
            if (!kind.out) continue;
            const int64_t grain = 1 + 16384 / (chunks * kind.step);
            parallel_for(kind.rows, grain, 1, threads, [&](int64_t begin, int64_t end, int) {
                for (int64_t row = begin; row < end; ++row) add_up_row(kind, sums + kind.at, chunks, row);
            });
        }
    }

private:
    enum Form { kNumbers, kSumOfLanes, kLanesByHead, kProduct, kByHead, kTransposed };
    struct Kind {
        float* out;
        Form form;
        int64_t rows, columns;  // of the gradient; of its transpose for kTransposed
        int64_t step, at;       // floats of a row in a chunk; offset of the first row
    };
    static constexpr int kMost = 13;

    int64_t heads_, floats_ = 0;
    int count_ = 0;
    Kind kinds_[kMost];

    void add(float* out, int64_t rows, int64_t columns, Form form) {
        const bool lanes = form == kSumOfLanes || form == kLanesByHead;
        const int64_t step = lanes ? columns * kLanes : form == kNumbers ? columns : turned_columns(columns);
        kinds_[count_++] = {out, form, rows, columns, step, floats_};
        floats_ += filled(rows * step, 16);
    }

    F32 total(const float* from, int64_t chunks, int lanes) const {
        F32 sum = load(from, 1, lanes);
        for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += load(from + chunk * floats_, 1, lanes);
        return sum;
    }

    // Row of the released weights for a row in the order half, head, (q, k, v), d.
    int64_t released_row(const Kind& kind, int64_t row) const {
        const int64_t size = kind.rows / 6 / heads_, unit = row / (3 * size), part = row / size % 3;
        return ((unit / heads_ * 3 + part) * heads_ + unit % heads_) * size + row % size;
    }

    void add_up_row(const Kind& kind, const float* sums, int64_t chunks, int64_t row) const {
        const float* from = sums + row * kind.step;
        const bool by_head = kind.form == kLanesByHead || kind.form == kByHead;
        float* to = kind.out + (by_head ? released_row(kind, row) : row) * kind.columns;
        if (kind.form == kSumOfLanes || kind.form == kLanesByHead) {
            for (int64_t i = 0; i < kind.columns; ++i) to[i] = sum_of_lanes(total(from + i * kLanes, chunks, kLanes));
            return;
        }
        for (int64_t column = 0; column < kind.columns; column += kLanes) {
            const int lanes = left_lanes(kind.columns - column);
            const F32 sum = total(from + column, chunks, lanes);
            if (kind.form != kTransposed) store(to + column, 1, lanes, sum);
            else store(kind.out + column * kind.rows + row, kind.rows, lanes, sum);
        }
    }
};

}  // namespace swk::SWK_ISA
