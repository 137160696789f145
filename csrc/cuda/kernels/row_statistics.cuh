// Mean and 1 / sqrt(variance + 1e-5) of the channels of each pixel, for the kernel `attention`, which else makes them in every
// head and half. Four lanes a pixel, 8 bytes each: a sector of 32 bytes at once. Bytes: C S + 8 a pixel.
#pragma once
#include "fragments.cuh"

namespace swk::cuda {

struct StatisticsArgs {
    const uint16_t* x;    // (pixels, C)
    float* statistics;    // (pixels, 2)
    int32_t channels, pixels;
};
constexpr int kStatisticsRows = 64;  // pixels of a block of 256 threads

template <class T>
GPU_FN void row_statistics(const StatisticsArgs& a) {
    const int t = gpu::lane() & 3, pixel = gpu::block() * kStatisticsRows + gpu::warp() * 8 + (gpu::lane() >> 2);
    const uint16_t* x = a.x + static_cast<size_t>(pixel < a.pixels ? pixel : a.pixels - 1) * a.channels;
    const float pivot = gpu::value<T>(*x), share = 1.0f / static_cast<float>(a.channels);  // as in head.cuh
    float sum = 0, squares = 0;
    for (int c = 4 * t; c < a.channels; c += 16) {
        const gpu::Words2 v = load4(x + c);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float p = gpu::low<T>(v.w[i]) - pivot, q = gpu::high<T>(v.w[i]) - pivot;
            sum += p + q, squares += p * p + q * q;
        }
    }
    const float mean = gpu::quad_sum(sum) * share, square = gpu::quad_sum(squares) * share;
    if (t == 0 && pixel < a.pixels) {
        a.statistics[2 * static_cast<size_t>(pixel)] = pivot + mean;
        a.statistics[2 * static_cast<size_t>(pixel) + 1] = gpu::reciprocal_sqrt(gpu::maximum(square - mean * mean, 0.0f) + 1e-5f);
    }
}

}  // namespace swk::cuda
