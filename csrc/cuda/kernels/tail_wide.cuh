// The tail of a block (tail.cuh has the formula) for so many channels that 16 pixels of a warp are too many registers:
// the warps share the pixels of a block and take their channels apart.
//
// Layout. A block has 16 kM kGroups pixels, kC channels and 8 warps: kGroups rows of kColumns = 8 / kGroups. A warp
// holds 16 kM pixels x kC / kColumns channels of y as float32 sums; n, and before it the attended tokens, lie in shared
// memory, and so does a chunk of 16 kColumns hidden channels, of which a warp makes 16. Weights come as a stream of
// slices of 32 columns, kStages stages: kC / 32 slices of P, then for each chunk kC / 32 of W_1 and W_2 and those of
// W_out. A slice's barrier tells that it has come, and that the slice before is used up. Moments of a pixel go through
// shared memory, warp by warp.
// Bytes: 3 C S a pixel (gated_ffn 2 C S), and all weights once a block, from L2.
#pragma once
#include "tail.cuh"

namespace swk::cuda {

template <class T, int kC, bool kProjects, int kGroups = 1, int kStages = 3, int kM = 4>
struct TailWide {
    static constexpr int kThreads = 256, kColumns = 8 / kGroups, kRows = 16 * kM * kGroups;
    static constexpr int kOwn = kC / kColumns, kWide = kOwn / 8;  // channels of a warp
    static constexpr int kHidden = 16 * kColumns, kSlice = 32;
    static constexpr int kDeepSlices = kC / kSlice, kHiddenSlices = kHidden / kSlice,
                         kChunkSlices = kDeepSlices + kHiddenSlices;
    static constexpr int kRowStride = odd_stride(kC), kHiddenStride = odd_stride(kHidden),
                         kSliceStride = odd_stride(kSlice);
    static constexpr int kSliceRows = kC > 2 * kHidden ? kC : 2 * kHidden;
    static constexpr int kRowBytes = 2 * kRows * kRowStride, kHiddenBytes = 2 * kRows * kHiddenStride;
    static constexpr int kStage = kSliceRows * kSliceStride;  // elements
    static constexpr int kMomentBytes = 4 * 2 * kRows * kColumns;
    static constexpr int kSharedBytes = kRowBytes + kHiddenBytes + 2 * kStages * kStage + kMomentBytes;
    static_assert(kC % (16 * kColumns) == 0, "a warp has whole pairs of tiles");

    using Sums = float[kM][kWide][4];

    const TailArgs& a;
    uint16_t *rows, *hidden, *stages;
    float* moments;  // (2, rows, columns of warps)
    int g, t, first;          // first row of the block
    int row, part;            // the warp's first row in the block, and its place among the columns
    int column;               // the warp's first channel

    GPU_FN explicit TailWide(const TailArgs& args) : a(args) {
        unsigned char* memory = gpu::shared();
        rows = reinterpret_cast<uint16_t*>(memory);
        hidden = reinterpret_cast<uint16_t*>(memory + kRowBytes);
        stages = reinterpret_cast<uint16_t*>(memory + kRowBytes + kHiddenBytes);
        moments = reinterpret_cast<float*>(memory + kRowBytes + kHiddenBytes + 2 * kStages * kStage);
        g = gpu::lane() >> 2, t = gpu::lane() & 3;
        first = gpu::block() * kRows, row = gpu::warp() / kColumns * 16 * kM;
        part = gpu::warp() % kColumns, column = part * kOwn;
    }

    // A row of the block among all, the last one where there are no more; and where the warp's part of a pixel is in x
    // and out.
    GPU_FN int clamped(int in_block) const { return first + in_block < a.pixels ? first + in_block : a.pixels - 1; }
    GPU_FN int row_of(int m, int h) const { return row + 16 * m + 8 * h + g; }
    GPU_FN size_t place(int m, int h) const {
        const int at = clamped(row_of(m, h));
        return static_cast<size_t>(kProjects ? pixel_of_row(a, at) : at) * kC + column;
    }

    // Slices of the whole stream, and the copy of one; past the end an empty group, so that waiting counts alike.
    GPU_FN int slices() const { return (kProjects ? kDeepSlices : 0) + a.chunks * kChunkSlices; }
    GPU_FN void fetch(int slice) const {
        uint16_t* to = stages + slice % kStages * kStage;
        if (slice < slices()) {
            int at = slice;
            if (kProjects && at < kDeepSlices) {
                copy_matrix<kC, kSlice, kSliceStride, kThreads>(to, a.projection + at * kC * kSlice);
            } else {
                if (kProjects) at -= kDeepSlices;
                const int chunk = at / kChunkSlices, in_chunk = at % kChunkSlices;
                if (in_chunk < kDeepSlices)
                    copy_slice<2 * kHidden, kC>(
                        to, a.in + static_cast<size_t>(chunk) * 2 * kHidden * kC + in_chunk * kSlice);
                else
                    copy_slice<kC, kHidden>(
                        to, a.project + static_cast<size_t>(chunk) * kHidden * kC + (in_chunk - kDeepSlices) * kSlice);
            }
        }
        gpu::copy_commit();
    }
    // 32 columns of kMatrixRows rows of kColumns.
    template <int kMatrixRows, int kColumns>
    GPU_FN void copy_slice(uint16_t* to, const uint16_t* from) const {
        for (int i = gpu::thread(); i < kMatrixRows * kSlice / 8; i += kThreads)
            gpu::copy_async16(to + i / 4 * kSliceStride + i % 4 * 8, from + i / 4 * kColumns + i % 4 * 8);
    }
    // The weights of a slice, there for all, while the next but one is on its way.
    GPU_FN const uint16_t* await(int slice) const {
        gpu::copy_wait<kStages - 2>();
        gpu::block_sync();  // the slice is there for all, and that before it is used up
        fetch(slice + kStages - 1);
        return stages + slice % kStages * kStage;
    }

    GPU_FN void run() {
        Sums y;
        if constexpr (kProjects) {
            for (int i = gpu::thread(); i < kRows * kC / 8; i += kThreads) {
                const int to = i / (kC / 8), piece = i % (kC / 8) * 8;
                gpu::copy_async16(rows + to * kRowStride + piece,
                                  a.attended + static_cast<size_t>(clamped(to)) * kC + piece);
            }
        }
        for (int slice = 0; slice < kStages - 1; ++slice)
            fetch(slice);  // the attended tokens belong to the first group
        load(y);
        int slice = 0;
        if constexpr (kProjects) {
            add_bias(y, a.projection_bias, column);
#pragma unroll 1
            for (int k = 0; k < kDeepSlices; ++k)
                add_slice<kRowStride>(y, rows + row * kRowStride + k * kSlice, await(slice++) + column * kSliceStride);
        }
        if (!kProjects || a.chunks > 0) {
            normalise(y);
#pragma unroll 1
            for (int chunk = 0; chunk < a.chunks; ++chunk) {
                make_hidden(chunk, slice);
#pragma unroll 1
                for (int k = 0; k < kHiddenSlices;
                     ++k)  // the first slice's barrier tells that the hidden channels are whole
                    add_slice<kHiddenStride>(y, hidden + row * kHiddenStride + k * kSlice,
                                             await(slice++) + column * kSliceStride);
            }
        }
        gpu::copy_wait<0>();
        store(y);
    }

    // 16 columns of all rows in shared memory as A fragments.
    template <int kStride>
    GPU_FN static void load_rows(uint32_t (&x)[kM][4], const uint16_t* from) {
        const int l = gpu::lane();
#pragma unroll
        for (int m = 0; m < kM; ++m) gpu::ldmatrix_x4(x[m], from + (16 * m + (l & 15)) * kStride + (l >> 4) * 8);
    }
    // y += rows W^T over a slice; w: the warp's first row.
    template <int kStride>
    GPU_FN static void add_slice(Sums& y, const uint16_t* from, const uint16_t* w) {
#pragma unroll
        for (int k = 0; k < kSlice; k += 16) {
            uint32_t x[kM][4];
            load_rows<kStride>(x, from + k);
            multiply16<T, kSliceStride>(y, x, w + k);
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
                if (first + row_of(m, h) >= a.pixels) continue;
                uint16_t* out = a.out + place(m, h);
#pragma unroll
                for (int j = 0; j < kWide; j += 2)
                    store4(out + 8 * j + 4 * t, gpu::pack<T>(y[m][j][2 * h], y[m][j][2 * h + 1]),
                           gpu::pack<T>(y[m][j + 1][2 * h], y[m][j + 1][2 * h + 1]));
            }
    }

    // Sum over all channels of a row of what each warp has of it: `own` is the lane's part, `which` a free half of
    // `moments`.
    GPU_FN void share(float own, int which, int of_row) const {
        own = gpu::quad_sum(own);
        if (t == 0) moments[(which * kRows + of_row) * kColumns + part] = own;
    }
    GPU_FN float total(int which, int of_row) const {
        const gpu::Words4* v = reinterpret_cast<const gpu::Words4*>(moments + (which * kRows + of_row) * kColumns);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i)
#pragma unroll
            for (int w = 0; w < 4; ++w) sum += gpu::as_float(v[i].w[w]);
        return sum;
    }

    // n of y to `rows`; then y += b_out.
    GPU_FN void normalise(Sums& y) const {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) share(sum_of(y[m], h), 0, row_of(m, h));
        gpu::block_sync();  // the sums are whole, and the attended tokens used up
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float mean = total(0, row_of(m, h)) * (1.0f / kC);
                share(squares_of(y[m], h, mean), 1, row_of(m, h));
            }
        gpu::block_sync();  // the squares are whole
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int to = row_of(m, h);
                const float mean = total(0, to) * (1.0f / kC);
                const float scale = gpu::reciprocal_sqrt(total(1, to) * (1.0f / kC) + 1e-5f), offset = -mean * scale;
#pragma unroll
                for (int j = 0; j < kWide; ++j)
                    store2(rows + to * kRowStride + column + 8 * j + 2 * t,
                           gpu::pack<T>(y[m][j][2 * h] * scale + offset, y[m][j][2 * h + 1] * scale + offset));
            }
        add_bias(y, a.bias, column);
    }

    // The chunk's hidden channels, the warp's 16 of each factor, to `hidden`. `slice` moves on.
    GPU_FN void make_hidden(int chunk, int& slice) const {
        const int own = 16 * part;
        float f[2][kM][2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) start(f[i], a.in_bias, (chunk * 2 + i) * kHidden + own);
#pragma unroll 1
        for (int k = 0; k < kDeepSlices; ++k) {
            const uint16_t* w = await(slice++);
#pragma unroll
            for (int c = 0; c < kSlice; c += 16) {
                uint32_t x[kM][4];
                load_rows<kRowStride>(x, rows + row * kRowStride + k * kSlice + c);
                multiply16<T, kSliceStride>(f[0], x, w + own * kSliceStride + c);
                multiply16<T, kSliceStride>(f[1], x, w + (kHidden + own) * kSliceStride + c);
            }
        }
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    store2(hidden + row_of(m, h) * kHiddenStride + own + 8 * j + 2 * t,
                           gated<T>(f[0][m][j], f[1][m][j], h));
    }
};

}  // namespace swk::cuda
