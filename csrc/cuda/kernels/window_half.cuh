// Window half of swda_attention: attention between the tokens of a window, for one head.
//
//   logits = scale cos(q, k) + bias + mask,   out = softmax_one(logits) v
//   softmax_one(l) = exp(l - m) / (1 + sum exp(l - m)), m the row's maximum; computed in powers of two
//
// q stays in registers (the sums of the convolution are laid out as A fragments), k and v go to `rows`, in place. Sums
// of q k^T start at the bias, which for a pair (query row, key row) depends on the difference of columns alone. Their
// layout is that of the A fragments of the product with v.
// Two ways. Online: running maximum, sums rescaled. Bounded: the table has had the logits' bound scale + 16 subtracted,
// so that exp2 takes the sums as they are and only the row's maximum is kept beside them; good while 2 scale + 16 <=
// 70, where nothing that counts underflows, and in bfloat16 alone (float16 ends at 2^-24).
// MACs of a block: 256 * 2 w w d. Exponentials: 256 w w.
#pragma once
#include "head.cuh"

namespace swk::cuda {

template <class T>
constexpr bool kWideExponent = false;
template <>
constexpr bool kWideExponent<gpu::BFloat16> = true;

template <class T, int kD, int kSide, int kM>
struct WindowHalf : Head<T, kD, kSide, kM> {
    using H = Head<T, kD, kSide, kM>;
    using H::a, H::rows, H::scratch, H::head, H::g, H::t, H::token, H::window_token, H::first_row;
    using H::kThreads, H::kWide, H::kDeep8, H::kStride, H::kSpan, H::kTileRows, H::kWindowTokens;
    using typename H::Deep;
    using typename H::Sums;
    static constexpr float kLog2E = 1.44269504f;
    // Differences of rows that a warp meets at once, and values of the table that a lane needs of each.
    static constexpr int kDifferences = kTileRows * (kM + 1) - 1, kValues = kSide == 16 ? 6 : 2;
    using Bias = float[kDifferences][kValues];
    static constexpr int kStep = 2;  // groups of 16 keys at once

    bool bounded;

    GPU_FN explicit WindowHalf(const H& unit) : H(unit) { bounded = kWideExponent<T> && a.scale[head] <= 27 * kLog2E; }

    GPU_FN void fill_table() const {
        const float bound = bounded ? a.scale[head] + 16 * kLog2E : 0.0f;
        for (int i = gpu::thread(); i < kSpan * kSpan; i += kThreads)
            scratch[i] = a.table[head * kSpan * kSpan + i] - bound;
    }

    GPU_FN void run(Sums& o, const Deep& q) const {
        const int last_row = a.height / kSide - 1, last_column = H::across() - 1;
        const bool rows_cut = a.shift > 0 && H::in_image() / H::across() == last_row;
        const bool columns_cut = a.shift > 0 && H::in_image() % H::across() == last_column;
        const bool masked = rows_cut || columns_cut;
        if constexpr (kWideExponent<T>) {
            if (bounded && masked) return attend<true, true>(o, q, rows_cut, columns_cut);
            if (bounded) return attend<false, true>(o, q, false, false);
        }
        if (masked) attend<true, false>(o, q, rows_cut, columns_cut);
        else attend<false, false>(o, q, false, false);
    }

    // Bias values of query and key rows `difference` apart. Columns differ by g - 2t + {8, 7, 0, -1, -8, -9}: key
    // columns 2t, 2t+1 (and, in a window of 16, 2t+8, 2t+9), query columns g (and g + 8).
    GPU_FN void load_bias(float (&b)[kValues], int difference) const {
        const float* at = scratch + (difference + kSide - 1) * kSpan + kSide - 1 + g - 2 * t;
        b[0] = at[0], b[1] = at[-1];
        if constexpr (kSide == 16) b[2] = at[8], b[3] = at[7], b[4] = at[-8], b[5] = at[-9];
    }
    // b[i]: rows first_row - key_row + i - (kTileRows - 1) apart. A group of keys has kTileRows rows; those of the
    // group before serve again.
    GPU_FN void begin_bias(Bias& b) const {
#pragma unroll
        for (int i = 0; i < kDifferences - kTileRows; ++i) load_bias(b[i], first_row + 1 + i);
    }
    GPU_FN void next_bias(Bias& b, int key_row) const {
#pragma unroll
        for (int i = kDifferences - 1; i >= kTileRows; --i)
#pragma unroll
            for (int v = 0; v < kValues; ++v) b[i][v] = b[i - kTileRows][v];
#pragma unroll
        for (int i = 0; i < kTileRows; ++i) load_bias(b[i], first_row - key_row + i - (kTileRows - 1));
    }
    // First values of tile m's sums: s[n][2h + i] of query token g + 8h and key token 8n + 2t + i.
    GPU_FN static void begin_sums(float (&s)[2][4], const Bias& b, int m) {
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if constexpr (kSide == 16) s[n][2 * h + i] = b[m][(h == n ? 0 : h > n ? 2 : 4) + i];
                    else s[n][2 * h + i] = b[2 * m + h - n + 1][i];
                }
    }

    // Pairs of different regions: the last window row is cut `shift` rows from its end, the last column likewise. Bit
    // 4n + 2h + i is that of s[n][2h + i]; those of the columns are the same for all rows.
    GPU_FN uint32_t columns_differ() const {
        uint32_t bits = 0;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool query = (g + (i < 2 ? 0 : 8)) % kSide >= kSide - a.shift,
                           key = (8 * n + 2 * t + (i & 1)) % kSide >= kSide - a.shift;
                bits |= (query != key ? 1u : 0u) << (4 * n + i);
            }
        return bits;
    }
    GPU_FN uint32_t rows_differ(int m, int key_row) const {
        uint32_t bits = 0;
        const int border = kSide - a.shift, query_row = first_row + kTileRows * m;
#pragma unroll
        for (int n = 0; n < kTileRows; ++n)
#pragma unroll
            for (int h = 0; h < kTileRows; ++h)
                if ((query_row + h >= border) != (key_row + n >= border))
                    bits |= kTileRows == 1 ? 0xffu : 3u << (4 * n + 2 * h);
        return bits;
    }
    // -100 (in powers of two) is added, as the formula has it: a masked pair may win.
    GPU_FN static void mask(float (&s)[2][4], uint32_t differ) {
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (differ >> (4 * n + i) & 1) s[n][i] -= 100 * kLog2E;
    }

    GPU_FN void score(float (&s)[kM][2][4], const Deep& q, int key) const {
        const uint16_t* keys = rows + (window_token + key) * kStride + kD;
        multiply_deep<T, kStride, kDeep8 == 1>(s, q, keys);
    }

    GPU_FN void gather(Sums& o, const uint32_t (&p)[kM][4], int key) const {
        const int l = gpu::lane();
        const uint16_t* values = rows + (window_token + key + (l & 15)) * kStride + 2 * kD;
#pragma unroll
        for (int j = 0; j + 1 < kWide; j += 2) {
            uint32_t r[4];
            gpu::ldmatrix_x4_trans(r, values + 8 * j + (l >> 4) * 8);
#pragma unroll
            for (int m = 0; m < kM; ++m) {
                gpu::mma_k16<T>(o[m][j], p[m], r[0], r[1]);
                gpu::mma_k16<T>(o[m][j + 1], p[m], r[2], r[3]);
            }
        }
        if constexpr (kWide % 2 == 1) {
            uint32_t r[2];
            gpu::ldmatrix_x2_trans(r, values + kD - 8);
#pragma unroll
            for (int m = 0; m < kM; ++m) gpu::mma_k16<T>(o[m][kWide - 1], p[m], r[0], r[1]);
        }
    }

    template <bool kMasked, bool kBounded>
    GPU_FN void attend(Sums& o, const Deep& q, bool rows_cut, bool columns_cut) const {
        const uint32_t columns = kMasked && columns_cut ? columns_differ() : 0;
        float top[kM][2], sum[kM][2];
        Bias b;
#pragma unroll
        for (int m = 0; m < kM; ++m) top[m][0] = top[m][1] = -1e30f, sum[m][0] = sum[m][1] = 0;
        clear(o);
        begin_bias(b);
#pragma unroll 1
        for (int key = 0; key < kWindowTokens; key += 16 * kStep) {
            float s[kStep][kM][2][4];
#pragma unroll
            for (int j = 0; j < kStep; ++j) {
                next_bias(b, (key + 16 * j) / kSide);
#pragma unroll
                for (int m = 0; m < kM; ++m) begin_sums(s[j][m], b, m);
                score(s[j], q, key + 16 * j);
                if constexpr (kMasked) {
#pragma unroll
                    for (int m = 0; m < kM; ++m)
                        mask(s[j][m], columns | (rows_cut ? rows_differ(m, (key + 16 * j) / kSide) : 0));
                }
            }
            uint32_t p[kStep][kM][4];
#pragma unroll
            for (int m = 0; m < kM; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float most = top[m][h];
#pragma unroll
                    for (int j = 0; j < kStep; ++j)
#pragma unroll
                        for (int n = 0; n < 2; ++n)
                            most = gpu::maximum(most, gpu::maximum(s[j][m][n][2 * h], s[j][m][n][2 * h + 1]));
                    if constexpr (!kBounded) {
                        most = gpu::quad_max(most);
                        const float shrink = gpu::exp2_approx(top[m][h] - most);
                        sum[m][h] *= shrink;
#pragma unroll
                        for (int j = 0; j < kWide; ++j) o[m][j][2 * h] *= shrink, o[m][j][2 * h + 1] *= shrink;
                    }
                    top[m][h] = most;
                    const float from = kBounded ? 0.0f : most;
#pragma unroll
                    for (int j = 0; j < kStep; ++j)
#pragma unroll
                        for (int n = 0; n < 2; ++n) {
                            const float first = gpu::exp2_approx(s[j][m][n][2 * h] - from),
                                        second = gpu::exp2_approx(s[j][m][n][2 * h + 1] - from);
                            sum[m][h] += first + second;
                            p[j][m][2 * n + h] = gpu::pack<T>(first, second);
                        }
                }
#pragma unroll
            for (int j = 0; j < kStep; ++j) gather(o, p[j], key + 16 * j);
        }
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float more = kBounded ? gpu::exp2_approx(gpu::quad_max(top[m][h])) : 1.0f;
                const float root = gpu::reciprocal_sqrt(gpu::quad_sum(sum[m][h]) + more), factor = root * root;
#pragma unroll
                for (int j = 0; j < kWide; ++j) o[m][j][2 * h] *= factor, o[m][j][2 * h + 1] *= factor;
            }
    }
};

template <class T, int kD, int kSide, int kM>
WindowHalf(const Head<T, kD, kSide, kM>&) -> WindowHalf<T, kD, kSide, kM>;

}  // namespace swk::cuda
