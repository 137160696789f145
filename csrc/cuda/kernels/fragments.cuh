// Products of 16-row fragments with matrices in shared memory, and copies of packed weights into it.
//
// Order of channels. Lane t of a quad holds the columns 2t, 2t+1 of a sums' tile and 2t, 2t+1, 2t+8, 2t+9 of an A
// fragment (gpu.h). Packed weights permute the channels within 16 so that these columns are the channels 4t to 4t+3:
// what a lane reads or writes of a pixel is one access of 8 bytes, and a quad's is one sector of 32. Position 2t+i
// holds channel 4t+i, position 8+2t+i channel 4t+2+i. Where the number of channels is odd in units of 8, the last 8
// keep their order.
#pragma once
#include "../gpu.h"

namespace swk::cuda {

// Row stride, in elements, of a matrix in shared memory with `columns` (a multiple of 8): odd in units of 16 bytes, so
// that the eight rows of an ldmatrix lie in different banks.
constexpr int odd_stride(int columns) { return columns / 8 % 2 ? columns : columns + 8; }

// c[m][j] += a[m] W^T for kTiles tiles of 8 rows of W, over 16 of W's columns. w: row 0, first column.
template <class T, int kStride, int kM, int kTiles>
GPU_FN void multiply16(float (&c)[kM][kTiles][4], const uint32_t (&a)[kM][4], const uint16_t* w) {
    const int l = gpu::lane();
#pragma unroll
    for (int j = 0; j + 1 < kTiles; j += 2) {  // matrices: (j, 0) (j, 8) (j + 1, 0) (j + 1, 8)
        uint32_t b[4];
        gpu::ldmatrix_x4(b, w + (8 * j + (l & 7) + (l >> 4) * 8) * kStride + (l >> 3 & 1) * 8);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
            gpu::mma_k16<T>(c[m][j], a[m], b[0], b[1]);
            gpu::mma_k16<T>(c[m][j + 1], a[m], b[2], b[3]);
        }
    }
    if constexpr (kTiles % 2 == 1) {
        uint32_t b[2];
        gpu::ldmatrix_x2(b, w + (8 * (kTiles - 1) + (l & 7)) * kStride + (l >> 3 & 1) * 8);
#pragma unroll
        for (int m = 0; m < kM; ++m) gpu::mma_k16<T>(c[m][kTiles - 1], a[m], b[0], b[1]);
    }
}

// The same over 8 columns.
template <class T, int kStride, int kM, int kTiles>
GPU_FN void multiply8(float (&c)[kM][kTiles][4], const uint32_t (&a)[kM][2], const uint16_t* w) {
    const int l = gpu::lane();
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
        uint32_t b[2];
        const bool two = j + 1 < kTiles;
        gpu::ldmatrix_x2(b, w + (8 * j + (two ? l & 15 : l & 7)) * kStride);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
            gpu::mma_k8<T>(c[m][j], a[m], b[0]);
            if (two) gpu::mma_k8<T>(c[m][two ? j + 1 : j], a[m], b[1]);
        }
    }
}

// c += a W^T over as many columns as a has, A fragments of 16 columns and, where kOdd, a last one of 8.
template <class T, int kStride, bool kOdd, int kM, int kTiles, int kDeep>
GPU_FN void multiply_deep(float (&c)[kM][kTiles][4], const uint32_t (&a)[kDeep][kM][4], const uint16_t* w) {
#pragma unroll
    for (int k = 0; k < kDeep - (kOdd ? 1 : 0); ++k) multiply16<T, kStride>(c, a[k], w + 16 * k);
    if constexpr (kOdd) {
        uint32_t last[kM][2];
#pragma unroll
        for (int m = 0; m < kM; ++m) last[m][0] = a[kDeep - 1][m][0], last[m][1] = a[kDeep - 1][m][1];
        multiply8<T, kStride>(c, last, w + 16 * (kDeep - 1));
    }
}

// A contiguous matrix of kRows x kColumns to shared memory at kStride, by the whole block: one group of copies, not
// waited for.
template <int kRows, int kColumns, int kStride, int kThreads>
GPU_FN void copy_matrix(uint16_t* to, const uint16_t* from) {
    constexpr int kPieces = kColumns / 8;
    for (int i = gpu::thread(); i < kRows * kPieces; i += kThreads)
        gpu::copy_async16(to + i / kPieces * kStride + i % kPieces * 8, from + 8 * i);
}

// Four neighbouring channels of a pixel, and two.
GPU_FN gpu::Words2 load4(const uint16_t* from) { return *reinterpret_cast<const gpu::Words2*>(from); }
GPU_FN uint32_t load2(const uint16_t* from) { return *reinterpret_cast<const uint32_t*>(from); }
GPU_FN void store4(uint16_t* to, uint32_t first, uint32_t second) {
    gpu::Words2 v;
    v.w[0] = first, v.w[1] = second;
    *reinterpret_cast<gpu::Words2*>(to) = v;
}
GPU_FN void store2(uint16_t* to, uint32_t pair) { *reinterpret_cast<uint32_t*>(to) = pair; }

// Sums that begin at zero, or at their columns' biases, from `first` on.
template <int kM, int kTiles>
GPU_FN void clear(float (&c)[kM][kTiles][4]) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int j = 0; j < kTiles; ++j) c[m][j][0] = c[m][j][1] = c[m][j][2] = c[m][j][3] = 0;
}
template <int kM, int kTiles>
GPU_FN void start(float (&c)[kM][kTiles][4], const float* bias, int first) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float b = bias[first + 8 * j + 2 * (gpu::lane() & 3) + i];
#pragma unroll
            for (int m = 0; m < kM; ++m) c[m][j][i] = c[m][j][2 + i] = b;
        }
}

// Windows of kSide x kSide tokens, in row-major order over the map rolled by (-shift, -shift).
struct Map {
    int height, width, shift;
};
// Pixel, counted within its image, of a token's row and column in window `in_image` of the image.
GPU_FN uint32_t pixel_of(const Map& map, int side, int in_image, int row, int column) {
    const int across = map.width / side;
    int y = in_image / across * side + row + map.shift, x = in_image % across * side + column + map.shift;
    y -= y >= map.height ? map.height : 0, x -= x >= map.width ? map.width : 0;
    return static_cast<uint32_t>(y) * static_cast<uint32_t>(map.width) + static_cast<uint32_t>(x);
}

}  // namespace swk::cuda
