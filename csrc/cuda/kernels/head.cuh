// What both halves of swda_attention begin with, for 256 tokens (one window of 16x16, or four of 8x8) and one head:
//
//   n = (x - mean) / sqrt(variance + 1e-5) over the channels   (LayerNorm; weight and bias folded into W and b)
//   y = W n + b, 3d channels: q, k, v                          as (W x - mean sum(W)) / sqrt(...) + b, on tensor cores
//   u = depth-wise 3x3 of y in the window, zero outside, + bias   product with diagonal matrices, on tensor cores
//
// Layout. A warp has kM tiles of 16 tokens: a row of a window of 16, two rows of a window of 8. y lies in shared memory
// as `rows`: 256 x 3d of the 16-bit type, at an odd stride of 16 bytes; before that the space holds two stages of W.
// Sums of the convolution stay in registers, in the layout of A fragments, for whoever comes next.
// Bytes of a block: 512 C of x (once from memory, from L2 for the other heads and halves), 6 d C of W from L2.
// MACs of a block: 256 (3 d C + 27 d).
#pragma once
#include "fragments.cuh"

namespace swk::cuda {

struct AttentionArgs {
    const uint16_t* x;          // (B, H, W, C)
    const uint16_t* qkv;        // (heads, 2, ceil(C / 48), 3D, 48): W with the norm's weight, in fragments.cuh's order
    const float* qkv_affine;    // (heads, 2, 3D, 2): sum of W's row, and W times the norm's bias, + bias
    const uint32_t* conv;       // (heads, 2, 3D / 8, 288): B fragments of diag(taps): a lane's taps 0 to 3, 4 to 7, 8
    const float* conv_bias;     // (heads, 2, 3D)
    const float* table;         // (heads, (2w-1)^2): 16 sigmoid(.) log2(e)
    const float* scale;         // (heads): exp(min(logit_scale, ln 100)) log2(e)
    uint16_t* attended;         // (windows, w w, C): head h writes channels h d.. (window half) and C/2 + h d..
    int32_t channels, heads, head_channels, height, width, shift, windows;
};

// kM: tiles of a warp.
template <class T, int kD, int kSide, int kM = (kD > 24 ? 1 : 2)>
struct Head {
    static constexpr int kThreads = 512 / kM, kWarps = kThreads / 32;
    static constexpr int kTokens = 256, kWindowTokens = kSide * kSide, kWindows = kTokens / kWindowTokens;
    static constexpr int kTileRows = 16 / kSide;  // window rows of a tile
    static constexpr int kRow = 3 * kD, kTiles = kRow / 8, kWide = kD / 8;
    static constexpr int kDeep16 = kD / 16, kDeep8 = kD % 16 / 8;
    static constexpr int kStride = odd_stride(kRow);
    static constexpr int kChunk = 48, kWeightStride = odd_stride(kChunk), kStage = kRow * kWeightStride;
    static constexpr int kRowsBytes = 2 * (kTokens * kStride > 2 * kStage ? kTokens * kStride : 2 * kStage);
    static constexpr int kSpan = 2 * kSide - 1, kTableBytes = (4 * kSpan * kSpan + 15) / 16 * 16;
    static constexpr int kSquares = kWarps * 2 * kD, kSquaresBytes = 4 * (kSquares + kWindows * 2 * kD);
    static constexpr int kScratchBytes = kTableBytes > kSquaresBytes ? kTableBytes : kSquaresBytes;
    static constexpr int kZeros = 64 + kRow;  // elements: a row, from any of the 8 groups of banks on
    static constexpr int kSharedBytes = kRowsBytes + 2 * kZeros + kScratchBytes;

    using Sums = float[kM][kWide][4];
    using Deep = uint32_t[kDeep16 + kDeep8][kM][4];  // A fragments over d: [k16 or k8 step][tile]

    const AttentionArgs& a;
    uint16_t* rows;    // (256, kStride): q, k, v of a token
    uint16_t* zeros;   // (kZeros), behind `rows`: what lies outside the window
    float* scratch;    // the bias table, or sums of squares of the warps
    int head, half;    // half 0: between tokens; 1: between channels
    int g, t;
    int token;         // the warp's first, in the block
    int window_token;  // first token of the warp's window, in the block
    int first_row;     // row of `token` in its window
    int window;        // the warp's; the last one again where there are no more
    bool present;      // there is such a window

    GPU_FN Head(const AttentionArgs& args, int unit) : a(args) {
        unsigned char* memory = gpu::shared();
        rows = reinterpret_cast<uint16_t*>(memory);
        zeros = reinterpret_cast<uint16_t*>(memory + kRowsBytes);
        scratch = reinterpret_cast<float*>(memory + kRowsBytes + 2 * kZeros);
        half = unit % 2, head = unit / 2 % a.heads;
        g = gpu::lane() >> 2, t = gpu::lane() & 3;
        token = gpu::warp() * 16 * kM;
        window_token = token / kWindowTokens * kWindowTokens;
        first_row = (token - window_token) / kSide;
        window = unit / 2 / a.heads * kWindows + token / kWindowTokens;
        present = window < a.windows;
        if (!present) window = a.windows - 1;
    }

    GPU_FN int across() const { return a.width / kSide; }
    GPU_FN int in_image() const { return window % (across() * (a.height / kSide)); }
    GPU_FN size_t image() const {
        return static_cast<size_t>(window / (across() * (a.height / kSide))) * a.height * a.width;
    }
    GPU_FN int part(int which) const { return (head * 2 + half) * kRow + which * kD; }  // of the packed biases

    GPU_FN void stage(int chunk, int slot) const {
        const int chunks = (a.channels + kChunk - 1) / kChunk;
        copy_matrix<kRow, kChunk, kWeightStride, kThreads>(
            rows + slot * kStage, a.qkv + (static_cast<size_t>(head * 2 + half) * chunks + chunk) * kRow * kChunk);
        gpu::copy_commit();
    }

    // y of the warp's tokens to `rows`, which is whole after the next barrier. The norm comes behind the product, so
    // that A is x as it lies in memory. A token's sum is one column more of the product.
    GPU_FN void project() const {
        uint32_t place[kM][2];  // of the lane's channels; an image has fewer than 2^32 elements
        float pivot[kM][2], squares[kM][2], sum[kM][1][4], y[kM][kTiles][4];
        const uint16_t* x = a.x + image() * a.channels;
        stage(0, 0);
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int in_window = token - window_token + 16 * m + g + 8 * h;
                const uint32_t pixel =
                    pixel_of({a.height, a.width, a.shift}, kSide, in_image(), in_window / kSide, in_window % kSide);
                const uint32_t at = pixel * static_cast<uint32_t>(a.channels);
                pivot[m][h] = gpu::value<T>(x[at]), squares[m][h] = 0;
                place[m][h] = at + 4 * static_cast<uint32_t>(t);
            }
        clear(y);
        clear(sum);
        const int chunks = (a.channels + kChunk - 1) / kChunk;
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk) {
            gpu::copy_wait<0>();
            gpu::block_sync();  // the chunk's weights are there for all, and those before it are used up
            if (chunk + 1 < chunks) stage(chunk + 1, (chunk + 1) % 2);
            const uint16_t* weights = rows + chunk % 2 * kStage;
            const int end = chunk + 1 < chunks ? kChunk : a.channels - chunk * kChunk;
#pragma unroll 1
            for (int k = 0; k < end; k += 16) {
                const bool there = k + 4 * t < end;  // else C is odd in units of 8, and the channels are zeros
                uint32_t tokens[kM][4];
#pragma unroll
                for (int m = 0; m < kM; ++m)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        gpu::Words2 v;
                        v.w[0] = v.w[1] = 0;
                        if (there) v = load4(x + (place[m][h] + static_cast<uint32_t>(chunk * kChunk + k)));
                        const float from = there ? pivot[m][h] : 0.0f;
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            const float low = gpu::low<T>(v.w[i]), high = gpu::high<T>(v.w[i]);
                            tokens[m][2 * i + h] = gpu::pack<T>(low, high);  // v.w[i], where a fragment needs it
                            squares[m][h] += (low - from) * (low - from);
                            squares[m][h] += (high - from) * (high - from);
                        }
                    }
                multiply16<T, kWeightStride>(y, tokens, weights + k);
                const uint32_t ones = gpu::pack<T>(1.0f, 1.0f);
#pragma unroll
                for (int m = 0; m < kM; ++m) gpu::mma_k16<T>(sum[m][0], tokens[m], ones, ones);
            }
        }
        gpu::block_sync();  // all weights are used up
        write_normed(y, sum, squares, pivot);
    }

    // (y - mean sum(W)) / sqrt(variance + 1e-5) + b, with y = W x, to `rows`. Squares are those of the differences from
    // the pivot, channel 0, which lies at most sqrt(C) standard deviations from the mean: at most C roundings are lost.
    GPU_FN void write_normed(const float (&y)[kM][kTiles][4], const float (&sum)[kM][1][4],
                             const float (&squares)[kM][2], const float (&pivot)[kM][2]) const {
        const float share = 1.0f / static_cast<float>(a.channels);
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float mean = sum[m][0][2 * h] * share, apart = mean - pivot[m][h];
                const float variance = gpu::quad_sum(squares[m][h]) * share - apart * apart;
                const float scale = gpu::reciprocal_sqrt(gpu::maximum(variance, 0.0f) + 1e-5f);
#pragma unroll
                for (int j = 0; j < kTiles; ++j) {
                    const float* affine = a.qkv_affine + 2 * (part(0) + 8 * j + 2 * t);
                    const gpu::Words4 v = *reinterpret_cast<const gpu::Words4*>(affine);
                    float normed[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const float centred = y[m][j][2 * h + i] - mean * gpu::as_float(v.w[2 * i]);
                        normed[i] = centred * scale + gpu::as_float(v.w[2 * i + 1]);
                    }
                    store2(row_of(m, h) + 8 * j + 2 * t, gpu::pack<T>(normed[0], normed[1]));
                }
            }
    }

    // The place in `rows` of token g (h = 0) or g + 8 (h = 1) of the warp's tile m.
    GPU_FN uint16_t* row_of(int m, int h) const { return rows + (token + 16 * m + g + 8 * h) * kStride; }

    // Where a lane's row of A is that is shifted by a tap: `rows` + start[dx + 1] + dy step[dx + 1], or in the zeros,
    // at a place of the same banks (rows of the window differ by a multiple of 128 bytes).
    struct Shifts {
        int start[3], step[3], outside[3];
    };
    GPU_FN Shifts shifts() const {
        static_assert(kSide * kStride % 64 == 0);
        const int l = gpu::lane(), column = l % kSide;
        Shifts s;
#pragma unroll
        for (int d = 0; d < 3; ++d) {
            const int at = (token + (l & 15) + d - 1) * kStride + (l >> 4) * 8;
            const bool inside = column + d - 1 >= 0 && column + d - 1 < kSide;
            s.outside[d] = kRowsBytes / 2 + (at & 63);
            s.start[d] = inside ? at : s.outside[d];
            s.step[d] = inside ? kSide * kStride : 0;
        }
        return s;
    }

    // u of q, k or v (`which`) of the warp's tokens: sums += A[row + dy, column + dx] diag(tap). A comes shifted, by
    // the addresses that the lanes give to ldmatrix. One loaded A serves every tile for which it is some dy's.
    GPU_FN void convolve(Sums& u, int which, const Shifts& shifts) const {
        const int l = gpu::lane(), lane_row = first_row + (l & 15) / kSide;
        start(u, a.conv_bias, part(which));
#pragma unroll
        for (int j = 0; j < kWide; j += 2) {
            const bool two = j + 1 < kWide;
            uint32_t w[9][2];
#pragma unroll
            for (int i = 0; i < (two ? 2 : 1); ++i) {
                const uint32_t* taps = a.conv + ((head * 2 + half) * kTiles + which * kWide + j + i) * 288;
#pragma unroll
                for (int four = 0; four < 2; ++four) {
                    const gpu::Words4 v = *reinterpret_cast<const gpu::Words4*>(taps + 128 * four + 4 * l);
#pragma unroll
                    for (int tap = 0; tap < 4; ++tap) w[4 * four + tap][i] = v.w[tap];
                }
                w[8][i] = taps[256 + l];
            }
            constexpr int kFirst = -1, kLast = kTileRows * (kM - 1) + 1;
#pragma unroll
            for (int source = kFirst; source <= kLast; ++source) {
                const int row = lane_row + source;  // of the window
                const bool inside = source == kFirst ? row >= 0 : source < kLast || row < kSide;
#pragma unroll
                for (int d = 0; d < 3; ++d) {
                    const int at = inside ? shifts.start[d] + source * shifts.step[d] : shifts.outside[d];
                    const uint16_t* from = rows + at + which * kD + 8 * j;
                    uint32_t x[2][2];
                    if (two) {
                        uint32_t r[4];
                        gpu::ldmatrix_x4(r, from);
                        x[0][0] = r[0], x[0][1] = r[1], x[1][0] = r[2], x[1][1] = r[3];
                    } else {
                        gpu::ldmatrix_x2(x[0], from);
                    }
#pragma unroll
                    for (int m = 0; m < kM; ++m) {
                        const int dy = source - kTileRows * m;
                        if (dy < -1 || dy > 1) continue;
                        gpu::mma_k8<T>(u[m][j], x[0], w[3 * dy + d + 3][0]);
                        if (two) gpu::mma_k8<T>(u[m][two ? j + 1 : j], x[1], w[3 * dy + d + 3][1]);
                    }
                }
            }
        }
    }

    // Rows of q or k divided by their norm, at least 1e-12, times `scale`.
    GPU_FN static void normalise(Sums& u, float scale) {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float squares = 0;
#pragma unroll
                for (int j = 0; j < kWide; ++j)
                    squares += u[m][j][2 * h] * u[m][j][2 * h] + u[m][j][2 * h + 1] * u[m][j][2 * h + 1];
                const float factor = scale * gpu::reciprocal_sqrt(gpu::maximum(gpu::quad_sum(squares), 1e-24f));
#pragma unroll
                for (int j = 0; j < kWide; ++j) u[m][j][2 * h] *= factor, u[m][j][2 * h + 1] *= factor;
            }
    }
    // Sums of the squares of the warp's tokens, for each channel of q (which = 0) or k, to scratch (warps, 2, d).
    GPU_FN void add_squares(const Sums& u, int which) const {
#pragma unroll
        for (int j = 0; j < kWide; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float sum = 0;
#pragma unroll
                for (int m = 0; m < kM; ++m) sum += u[m][j][i] * u[m][j][i] + u[m][j][2 + i] * u[m][j][2 + i];
#pragma unroll
                for (int lanes = 4; lanes < 32; lanes *= 2) sum += gpu::shuffle_xor(sum, lanes);
                if (g == 0) scratch[(gpu::warp() * 2 + which) * kD + 8 * j + 2 * t + i] = sum;
            }
    }

    // From y to what the halves need. Window half: `kept` is q, k and v are in `rows` (whole after the next barrier), q
    // and k normalised over d, q times the scale. Channel half: `kept` is v, q and k are in `rows` as they are, and the
    // sums of their squares in scratch.
    GPU_FN void mix(Deep& kept) const {
        Deep parts[3];
        Sums u;
        const Shifts taps = shifts();
#pragma unroll
        for (int which = 0; which < 3; ++which) {
            convolve(u, which, taps);
            if (which < 2) {
                if (half == 0) normalise(u, which == 0 ? a.scale[head] : 1.0f);
                else add_squares(u, which);
            }
            to_fragments(parts[which], u);
        }
        gpu::block_sync();  // all neighbours are read
        put(parts[1], 1);
        if (half == 0) put(parts[2], 2);
        else put(parts[0], 0);
#pragma unroll
        for (int k = 0; k < kDeep16 + kDeep8; ++k)
#pragma unroll
            for (int m = 0; m < kM; ++m)
#pragma unroll
                for (int i = 0; i < (k < kDeep16 ? 4 : 2); ++i)
                    kept[k][m][i] = half == 0 ? parts[0][k][m][i] : parts[2][k][m][i];
    }

    // Sums, rounded, as A fragments; what a k8 step does not have is zero.
    GPU_FN static void to_fragments(Deep& to, const Sums& from) {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int j = 0; j < kWide; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    to[j / 2][m][j % 2 * 2 + h] = gpu::pack<T>(from[m][j][2 * h], from[m][j][2 * h + 1]);
    }
    // The fragments of part `which` to `rows`.
    GPU_FN void put(const Deep& from, int which) const {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int j = 0; j < kWide; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    store2(row_of(m, h) + which * kD + 8 * j + 2 * t, from[j / 2][m][j % 2 * 2 + h]);
    }

    // Results of the head to `attended`, rounded; their channels are in fragments.cuh's order.
    GPU_FN void write(const Sums& o) const {
        if (!present) return;
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const size_t row =
                    static_cast<size_t>(window) * kWindowTokens + token - window_token + 16 * m + g + 8 * h;
                uint16_t* to = a.attended + row * a.channels + half * (a.channels / 2) + head * a.head_channels;
#pragma unroll
                for (int j = 0; j + 1 < kWide; j += 2)
                    if (kD > 16 || 4 * t < a.head_channels)
                        store4(to + 8 * j + 4 * t, gpu::pack<T>(o[m][j][2 * h], o[m][j][2 * h + 1]),
                               gpu::pack<T>(o[m][j + 1][2 * h], o[m][j + 1][2 * h + 1]));
                if constexpr (kWide % 2 == 1)
                    store2(to + 8 * (kWide - 1) + 2 * t,
                           gpu::pack<T>(o[m][kWide - 1][2 * h], o[m][kWide - 1][2 * h + 1]));
            }
    }
};

}  // namespace swk::cuda
