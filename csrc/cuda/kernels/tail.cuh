// The pixel-local tail of a block, and gated_ffn alone (without the first line, y = x):
//
//   y = x + P a + b_p                                          a: `attended`, windows of the rolled map; without
//                                                              hidden channels that is all: swda_attention
//   n = (y - mean) / sqrt(variance + 1e-5) over the channels   (LayerNorm; weight and bias folded into W and b)
//   out = y + W_out ((W_1 n + b_1) (W_2 n + b_2)) + b_out
//
// Layout. A block takes 128 kM pixels: a warp kM tiles of 16, with all C channels of y as float32 sums. Their layout is
// that of n's A fragments, so that n stays in registers as well; the FFN adds onto y itself. The hidden channels come
// in chunks of kHidden, as W_1, W_2 and W_out of the chunk, by cp.async in two stages; a chunk's product of the two
// factors is rounded and is the A fragment of the product with W_out. Channels are in fragments.cuh's order throughout.
// Bytes: 3 C S a pixel (gated_ffn 2 C S) and all weights once a block, from L2. MACs: C^2 + 3 C hidden a pixel.
#pragma once
#include "fragments.cuh"

namespace swk::cuda {

struct TailArgs {
    const uint16_t* attended;        // (windows, w w, C)
    const uint16_t* projection;      // (ceil(C / 32), C, 32)
    const float* projection_bias;    // (C)
    const uint16_t* x;               // (B, H, W, C)
    const uint16_t* in;              // (chunks, 2 kHidden, C): rows of W_1, then of W_2
    const float* in_bias;            // (chunks, 2 kHidden)
    const uint16_t* project;         // (chunks, C, kHidden): W_out
    const float* bias;               // (C)
    uint16_t* out;                   // as x
    int32_t pixels, chunks, height, width, side, shift;  // the last four: of the windows
};

// Pixel that a row of `attended` belongs to. Windows have 8 or 16 tokens a side.
GPU_FN int pixel_of_row(const TailArgs& a, int row) {
    const int log_tokens = a.side == 16 ? 8 : 6, log_side = log_tokens / 2;
    const int window = row >> log_tokens, token = row & ((1 << log_tokens) - 1);
    const int windows = (a.width >> log_side) * (a.height >> log_side), image = window / windows;
    const uint32_t in_image = pixel_of({a.height, a.width, a.shift}, a.side, window - image * windows,
                                       token >> log_side, token & (a.side - 1));
    return image * a.height * a.width + static_cast<int>(in_image);
}

// A lane's channels of token g (h = 0) or g + 8 (h = 1) of a tile's sums y, as they lie from x on: of tiles j, j + 1
// the channels 8 j + 4 t.. ; of a last tile alone 8 j + 2 t.. .
template <class T, int kWide>
GPU_FN void load_pixel(float (&y)[kWide][4], int h, const uint16_t* x) {
    const int t = gpu::lane() & 3;
#pragma unroll
    for (int j = 0; j + 1 < kWide; j += 2) {
        const gpu::Words2 v = load4(x + 8 * j + 4 * t);
        y[j][2 * h] = gpu::low<T>(v.w[0]), y[j][2 * h + 1] = gpu::high<T>(v.w[0]);
        y[j + 1][2 * h] = gpu::low<T>(v.w[1]), y[j + 1][2 * h + 1] = gpu::high<T>(v.w[1]);
    }
    if constexpr (kWide % 2 == 1) {
        const uint32_t v = load2(x + 8 * (kWide - 1) + 2 * t);
        y[kWide - 1][2 * h] = gpu::low<T>(v), y[kWide - 1][2 * h + 1] = gpu::high<T>(v);
    }
}
// y += bias; the sums' channels are those from `first` on.
template <int kM, int kWide>
GPU_FN void add_bias(float (&y)[kM][kWide][4], const float* bias, int first = 0) {
    const int t = gpu::lane() & 3;
#pragma unroll
    for (int j = 0; j < kWide; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool alone = kWide % 2 == 1 && j == kWide - 1;
            const float b = bias[first + (alone ? 8 * j + 2 * t + i : 16 * (j / 2) + 4 * t + 2 * (j % 2) + i)];
#pragma unroll
            for (int m = 0; m < kM; ++m) y[m][j][i] += b, y[m][j][2 + i] += b;
        }
}
// Of a lane's channels of a token: their sum, and that of the squares of their differences from the mean.
template <int kWide>
GPU_FN float sum_of(const float (&y)[kWide][4], int h) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kWide; ++j) sum += y[j][2 * h] + y[j][2 * h + 1];
    return sum;
}
template <int kWide>
GPU_FN float squares_of(const float (&y)[kWide][4], int h, float mean) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
        const float p = y[j][2 * h] - mean, q = y[j][2 * h + 1] - mean;
        squares += p * p + q * q;
    }
    return squares;
}
// Two neighbouring hidden channels of a token: the products of the FFN's factors, tiles of sums.
template <class T>
GPU_FN uint32_t gated(const float (&first)[4], const float (&second)[4], int h) {
    return gpu::pack<T>(first[2 * h] * second[2 * h], first[2 * h + 1] * second[2 * h + 1]);
}

template <class T, int kC, int kM, bool kProjects>
struct Tail {
    static constexpr int kThreads = 256, kRows = 16 * kM * kThreads / 32;
    static constexpr int kWide = kC / 8, kDeep16 = kC / 16, kDeep8 = kC % 16 / 8;
    static constexpr int kHidden = 32, kSlice = 32;
    static constexpr int kInStride = odd_stride(kC), kOutStride = odd_stride(kHidden),
                         kSliceStride = odd_stride(kSlice);
    static constexpr int kIn = 2 * kHidden * kInStride, kStage = kIn + kC * kOutStride;  // elements
    static constexpr int kSharedBytes = 2 * 2 * kStage;
    static_assert(kC * kSliceStride <= kStage, "a slice of the projection fits a stage");

    using Sums = float[kM][kWide][4];
    using Deep = uint32_t[kDeep16 + kDeep8][kM][4];

    const TailArgs& a;
    uint16_t* memory;
    int g, t;
    int first;  // of the warp's rows

    GPU_FN explicit Tail(const TailArgs& args) : a(args) {
        memory = reinterpret_cast<uint16_t*>(gpu::shared());
        g = gpu::lane() >> 2, t = gpu::lane() & 3;
        first = gpu::block() * kRows + gpu::warp() * 16 * kM;
    }

    // The row of `attended` of token g or g + 8 of tile m, and its pixel; the last one's where there are no more.
    GPU_FN int row_of(int m, int h) const {
        const int row = first + 16 * m + 8 * h + g;
        return row < a.pixels ? row : a.pixels - 1;
    }
    GPU_FN size_t place(int m, int h) const {
        return static_cast<size_t>(kProjects ? pixel_of_row(a, row_of(m, h)) : row_of(m, h)) * kC;
    }

    GPU_FN void run() {
        Sums y;
        if constexpr (kProjects) {
            stage_slice(0);
            load(y);
            project(y);
            if (a.chunks > 0) {
                stage_chunk(0);
                add_ffn(y);
            }
        } else {
            stage_chunk(0);
            load(y);
            add_ffn(y);
        }
        store(y);
    }

    // y += W_out (...) + b_out; the first chunk is on its way.
    GPU_FN void add_ffn(Sums& y) const {
        Deep n;
        normalise(y, n);
        for (int chunk = 0; chunk < a.chunks; ++chunk) {
            gpu::copy_wait<0>();
            gpu::block_sync();  // the chunk's weights are there for all, and those before it are used up
            if (chunk + 1 < a.chunks) stage_chunk(chunk + 1);
            add_chunk(y, n, chunk);
        }
    }

    GPU_FN void load(Sums& y) const {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) load_pixel<T>(y[m], h, a.x + place(m, h));
    }
    GPU_FN void store(const Sums& y) const {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (first + 16 * m + 8 * h + g >= a.pixels) continue;
                uint16_t* out = a.out + place(m, h);
#pragma unroll
                for (int j = 0; j + 1 < kWide; j += 2)
                    store4(out + 8 * j + 4 * t, gpu::pack<T>(y[m][j][2 * h], y[m][j][2 * h + 1]),
                           gpu::pack<T>(y[m][j + 1][2 * h], y[m][j + 1][2 * h + 1]));
                if constexpr (kWide % 2 == 1)
                    store2(out + 8 * (kWide - 1) + 2 * t,
                           gpu::pack<T>(y[m][kWide - 1][2 * h], y[m][kWide - 1][2 * h + 1]));
            }
    }

    GPU_FN void stage_slice(int slice) const {
        copy_matrix<kC, kSlice, kSliceStride, kThreads>(memory + slice % 2 * kStage,
                                                        a.projection + static_cast<size_t>(slice) * kC * kSlice);
        gpu::copy_commit();
    }

    // y += P a + b_p, in slices of 32 channels of a.
    GPU_FN void project(Sums& y) const {
        constexpr int kSlices = (kC + kSlice - 1) / kSlice;
        add_bias(y, a.projection_bias);
#pragma unroll 1
        for (int slice = 0; slice < kSlices; ++slice) {
            gpu::copy_wait<0>();
            gpu::block_sync();  // the slice's weights are there for all, and those before it are used up
            if (slice + 1 < kSlices) stage_slice(slice + 1);
            const uint16_t* w = memory + slice % 2 * kStage;
#pragma unroll
            for (int k = 0; k < kSlice; k += 16) {
                const int c = kSlice * slice + k;
                if (c + 16 <= kC) {
                    uint32_t x[kM][4];
#pragma unroll
                    for (int m = 0; m < kM; ++m)
#pragma unroll
                        for (int h = 0; h < 2; ++h) {
                            const gpu::Words2 v =
                                load4(a.attended + static_cast<size_t>(row_of(m, h)) * kC + c + 4 * t);
                            x[m][h] = v.w[0], x[m][2 + h] = v.w[1];
                        }
                    multiply16<T, kSliceStride>(y, x, w + k);
                } else if (kDeep8 == 1 && c < kC) {
                    uint32_t x[kM][2];
#pragma unroll
                    for (int m = 0; m < kM; ++m)
#pragma unroll
                        for (int h = 0; h < 2; ++h)
                            x[m][h] = load2(a.attended + static_cast<size_t>(row_of(m, h)) * kC + c + 2 * t);
                    multiply8<T, kSliceStride>(y, x, w + k);
                }
            }
        }
        gpu::block_sync();  // all slices are used up
    }

    // n of y as A fragments; then y += b_out.
    GPU_FN void normalise(Sums& y, Deep& n) const {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float mean = gpu::quad_sum(sum_of(y[m], h)) * (1.0f / kC);
                const float squares = squares_of(y[m], h, mean);
                const float scale = gpu::reciprocal_sqrt(gpu::quad_sum(squares) * (1.0f / kC) + 1e-5f),
                            offset = -mean * scale;
#pragma unroll
                for (int j = 0; j < kWide; ++j)
                    n[j / 2][m][j % 2 * 2 + h] =
                        gpu::pack<T>(y[m][j][2 * h] * scale + offset, y[m][j][2 * h + 1] * scale + offset);
            }
        add_bias(y, a.bias);
    }

    GPU_FN void stage_chunk(int chunk) const {
        uint16_t* to = memory + chunk % 2 * kStage;
        copy_matrix<2 * kHidden, kC, kInStride, kThreads>(to, a.in + static_cast<size_t>(chunk) * 2 * kHidden * kC);
        copy_matrix<kC, kHidden, kOutStride, kThreads>(to + kIn, a.project + static_cast<size_t>(chunk) * kHidden * kC);
        gpu::copy_commit();
    }

    GPU_FN void add_chunk(Sums& y, const Deep& n, int chunk) const {
        const uint16_t* in = memory + chunk % 2 * kStage;
#pragma unroll
        for (int part = 0; part < kHidden; part += 16) {
            float f[2][kM][2][4];  // the two factors: [tile of rows][8 hidden channels]
#pragma unroll
            for (int i = 0; i < 2; ++i) start(f[i], a.in_bias, (chunk * 2 + i) * kHidden + part);
#pragma unroll
            for (int k = 0; k < kDeep16; ++k)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    multiply16<T, kInStride>(f[i], n[k], in + (i * kHidden + part) * kInStride + 16 * k);
            if constexpr (kDeep8 == 1) {
                uint32_t deep[kM][2];
#pragma unroll
                for (int m = 0; m < kM; ++m) deep[m][0] = n[kDeep16][m][0], deep[m][1] = n[kDeep16][m][1];
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    multiply8<T, kInStride>(f[i], deep, in + (i * kHidden + part) * kInStride + 16 * kDeep16);
            }
            uint32_t p[kM][4];
#pragma unroll
            for (int m = 0; m < kM; ++m)
#pragma unroll
                for (int j = 0; j < 2; ++j)
#pragma unroll
                    for (int h = 0; h < 2; ++h) p[m][2 * j + h] = gated<T>(f[0][m][j], f[1][m][j], h);
            multiply16<T, kOutStride>(y, p, in + kIn + part);
        }
    }
};

}  // namespace swk::cuda
