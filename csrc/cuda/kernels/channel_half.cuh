// Channel half of swda_attention: attention between the d channels of a head, over the N = w w tokens of each window.
//
//   logits[c, e] = sum over tokens of q[c] k[e] / (|q[c]| |k[e]|), norms over the tokens, at least 1e-12
//   out[token, c] = sum over e of softmax_one(logits[c])[e] v[token, e]           (softmax_one: window_half.cuh)
//
// q and k go to `rows`, in place and not normalised; their norms are sums of squares in float32, by warps and then over
// warps. v stays in registers as A fragments. A warp takes 16 of the rows c of one window: q^T k with both operands
// transposed by ldmatrix, then softmax_one in registers, and the weights to the places of v in `rows`, which nobody
// else uses.
// MACs of a block: 256 * 2 d d (the product q^T k with d padded to a multiple of 16).
#pragma once
#include "head.cuh"

namespace swk::cuda {

template <class T, int kD, int kSide, int kM>
struct ChannelHalf : Head<T, kD, kSide, kM> {
    using H = Head<T, kD, kSide, kM>;
    using H::a, H::rows, H::scratch, H::g, H::t, H::window_token;
    using H::kDeep8, H::kStride, H::kWide, H::kWindowTokens, H::kWindows, H::kWarps, H::kSquares;
    using typename H::Deep;
    using typename H::Sums;
    static constexpr int kJobs = (kD + 15) / 16;                // tiles of rows c of a window
    static constexpr int kWindowWarps = kWarps / kWindows;      // that hold a window's tokens
    static_assert(kJobs * kWindows <= kWarps, "a warp takes one tile of rows");
    static_assert(kD <= kWindowTokens, "the weights take the places of v");

    GPU_FN explicit ChannelHalf(const H& unit) : H(unit) {}

    GPU_FN void run(Sums& o, const Deep& v) const {
        const bool works = gpu::warp() < kJobs * kWindows;
        const int window = gpu::warp() / kJobs, job = gpu::warp() % kJobs;
        float s[kWide][4];
        if (gpu::thread() < kWindows * 2 * kD) invert_norm(gpu::thread());
        if (works) multiply(s, window, job);
        gpu::block_sync();  // the norms are whole
        if (works) weigh(s, window, job);
        gpu::block_sync();  // the weights are whole
        apply(o, v);
    }

    // 1 / norm over its window's tokens of the i-th of (windows of the block, 2, d), to scratch behind the squares.
    GPU_FN void invert_norm(int i) const {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWindowWarps; ++w)
            sum += scratch[(i / (2 * kD) * kWindowWarps + w) * 2 * kD + i % (2 * kD)];
        scratch[kSquares + i] = gpu::reciprocal_sqrt(gpu::maximum(sum, 1e-24f));
    }
    GPU_FN float inverse_norm(int window, int which, int channel) const {
        return scratch[kSquares + (window * 2 + which) * kD + channel];
    }

    // q^T k for the rows 16 job.. of a window of the block. Rows from d on read what lies behind and are not kept.
    GPU_FN void multiply(float (&s)[kWide][4], int window, int job) const {
        const int l = gpu::lane();
#pragma unroll
        for (int j = 0; j < kWide; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
        const uint16_t* base = rows + window * kWindowTokens * kStride;
        // Transposed matrices of q (channel, token): (0, 0) (8, 0) (0, 8) (8, 8); of k (token, channel): (0, 0) (8, 0)
        // and those of the next 8 channels.
        const uint16_t* q = base + ((l & 7) + (l >> 4) * 8) * kStride + 16 * job + (l >> 3 & 1) * 8;
        const uint16_t* k = base + (l & 15) * kStride + kD;
#pragma unroll 4
        for (int token = 0; token < kWindowTokens; token += 16) {
            uint32_t x[4];
            gpu::ldmatrix_x4_trans(x, q + token * kStride);
#pragma unroll
            for (int j = 0; j + 1 < kWide; j += 2) {
                uint32_t r[4];
                gpu::ldmatrix_x4_trans(r, k + token * kStride + 8 * j + (l >> 4) * 8);
                gpu::mma_k16<T>(s[j], x, r[0], r[1]);
                gpu::mma_k16<T>(s[j + 1], x, r[2], r[3]);
            }
            if constexpr (kWide % 2 == 1) {
                uint32_t r[2];
                gpu::ldmatrix_x2_trans(r, k + token * kStride + kD - 8);
                gpu::mma_k16<T>(s[kWide - 1], x, r[0], r[1]);
            }
        }
    }

    // softmax_one of the rows, to the places of v.
    GPU_FN void weigh(float (&s)[kWide][4], int window, int job) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = 16 * job + g + 8 * h;
            const float factor = 1.44269504f * inverse_norm(window, 0, row < kD ? row : 0);
            float most = -1e30f, sum = 0;
#pragma unroll
            for (int j = 0; j < kWide; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int column = 8 * j + 2 * t + i;
                    float& logit = s[j][2 * h + i];
                    logit =
                        kD > 16 || column < a.head_channels ? logit * factor * inverse_norm(window, 1, column) : -1e30f;
                    most = gpu::maximum(most, logit);
                }
            most = gpu::quad_max(most);
#pragma unroll
            for (int j = 0; j < kWide; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) sum += s[j][2 * h + i] = gpu::exp2_approx(s[j][2 * h + i] - most);
            const float root = gpu::reciprocal_sqrt(1.0f + gpu::quad_sum(sum)), rest = root * root;
            if (row < kD) {
                uint16_t* to = rows + (window * kWindowTokens + row) * kStride + 2 * kD;
#pragma unroll
                for (int j = 0; j < kWide; ++j)
                    store2(to + 8 * j + 2 * t, gpu::pack<T>(s[j][2 * h] * rest, s[j][2 * h + 1] * rest));
            }
        }
    }

    GPU_FN void apply(Sums& o, const Deep& v) const {
        const uint16_t* weights = rows + window_token * kStride + 2 * kD;
        clear(o);
        multiply_deep<T, kStride, kDeep8 == 1>(o, v, weights);
    }
};

template <class T, int kD, int kSide, int kM>
ChannelHalf(const Head<T, kD, kSide, kM>&) -> ChannelHalf<T, kD, kSide, kM>;

}  // namespace swk::cuda
