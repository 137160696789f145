// GroupNorm, a scale and a shift, and SiLU, of images in channels_last: x (B, pixels, C), C a multiple of 8.
//
//   u = (x - mean) / sqrt(variance + eps) * weight + bias      mean and variance over C / groups channels and all pixels
//   y = v sigmoid(v), v = u (1 + scale) + shift                scale and shift (B, C)
//
// Three kernels. `statistics`: a block for a run of pixels gives mean and sum of squared deviations of each channel,
// `partial` (B, runs, 2, C) float32. `table`: a block for a group merges them, in a fixed order, into mean, factor and
// offset of each channel, `table` (B, 3, C) float32, y = silu((x - mean) factor + offset). `apply`: a run of pixels again.
// Bytes of an element: 2 for the statistics, 4 for the result, and up to 1/8 for `partial`. No atomics: the same bits each
// time. In a block a thread keeps 8 neighbouring channels, a column of vectors of 16 bytes, and takes every rows-th pixel.
#include "group_norm.h"
#include "words.h"

namespace swk::cuda {
namespace {

struct StatisticsArgs {
    const uint16_t* x;
    float* partial;
    int32_t channels, pixels, runs, run;
};

struct TableArgs {
    const float* partial;
    const uint16_t *weight, *bias, *scale, *shift;  // any may be null
    float* table;
    int32_t channels, pixels, runs, run, groups;
    float eps;
};

struct ApplyArgs {
    const uint16_t* x;
    const float* table;
    uint16_t* out;
    int32_t channels, pixels, runs, run;
};

// The part of an image that a thread of `statistics` or `apply` has.
struct Column {
    int columns, rows, column, row, image, first, count;  // pixels first to first + count are the block's

    template <typename Args>
    GPU_FN explicit Column(const Args& a) {
        columns = a.channels / kVector, rows = kNormThreads / columns;
        column = gpu::thread() % columns, row = gpu::thread() / columns;
        image = gpu::block() / a.runs;
        first = gpu::block() % a.runs * a.run;
        count = a.pixels - first < a.run ? a.pixels - first : a.run;
    }

    GPU_FN int64_t place(int pixels, int pixel) const {  // in x and out, of a pixel of the block
        return ((static_cast<int64_t>(image) * pixels + first + pixel) * columns + column) * kVector;
    }
};

// Sums are taken of differences to the run's first pixel: a mean far from 0 costs no digits.
template <typename T>
GPU_FN void statistics(const StatisticsArgs& a) {
    const Column at(a);
    float* const sums = reinterpret_cast<float*>(gpu::shared());
    float* const squares = sums + at.rows * a.channels;  // both (rows, C)
    float origin[kVector];
    if (at.row < at.rows) {
        float sum[kVector] = {}, square[kVector] = {}, v[kVector];
        widen<T>(load_vector(a.x + at.place(a.pixels, 0)), origin);
        for (int pixel = at.row; pixel < at.count; pixel += at.rows) {
            widen<T>(load_vector(a.x + at.place(a.pixels, pixel)), v);
            for (int i = 0; i < kVector; ++i) {
                const float d = v[i] - origin[i];
                sum[i] += d, square[i] += d * d;
            }
        }
        const int place = at.row * a.channels + at.column * kVector;
        for (int i = 0; i < kVector; ++i) sums[place + i] = sum[i], squares[place + i] = square[i];
    }
    gpu::block_sync();
    float* const out = a.partial + static_cast<int64_t>(gpu::block()) * 2 * a.channels;
    const uint16_t* const origins = a.x + (static_cast<int64_t>(at.image) * a.pixels + at.first) * a.channels;
    const float each = 1.0f / static_cast<float>(at.count);
    for (int c = gpu::thread(); c < a.channels; c += kNormThreads) {
        float sum = 0, square = 0;
        for (int row = 0; row < at.rows; ++row) sum += sums[row * a.channels + c], square += squares[row * a.channels + c];
        out[c] = gpu::value<T>(origins[c]) + sum * each;
        out[a.channels + c] = square - sum * sum * each;
    }
}

// Sum over the block of v, to every thread.
GPU_FN float block_sum(float v) {
    float* const of_warps = reinterpret_cast<float*>(gpu::shared());
    for (int mask = 16; mask > 0; mask /= 2) v += gpu::shuffle_xor(v, mask);
    gpu::block_sync();  // of_warps may still be read
    if (gpu::lane() == 0) of_warps[gpu::warp()] = v;
    gpu::block_sync();
    float sum = 0;
    for (int i = 0; i < kNormThreads / 32; ++i) sum += of_warps[i];
    return sum;
}

// Two passes: the mean, then the squared deviations from it.
template <typename T>
GPU_FN void table(const TableArgs& a) {
    const int size = a.channels / a.groups, image = gpu::block() / a.groups, first = gpu::block() % a.groups * size;
    const float* const partial = a.partial + static_cast<int64_t>(image) * a.runs * 2 * a.channels + first;
    const auto count = [&](int run) { return static_cast<float>(run < a.runs - 1 ? a.run : a.pixels - run * a.run); };
    const float elements = static_cast<float>(size) * static_cast<float>(a.pixels);
    float sum = 0;
    for (int i = gpu::thread(); i < a.runs * size; i += kNormThreads) {
        const int run = i / size;
        sum += count(run) * partial[static_cast<int64_t>(run) * 2 * a.channels + i % size];
    }
    const float mean = block_sum(sum) / elements;
    float square = 0;
    for (int i = gpu::thread(); i < a.runs * size; i += kNormThreads) {
        const int run = i / size;
        const float* const of_run = partial + static_cast<int64_t>(run) * 2 * a.channels + i % size;
        const float d = of_run[0] - mean;
        square += of_run[a.channels] + count(run) * d * d;
    }
    const float scale = 1.0f / gpu::square_root(block_sum(square) / elements + a.eps);
    for (int i = gpu::thread(); i < size; i += kNormThreads) {
        const int c = first + i, of_image = image * a.channels + c;
        float factor = a.weight != nullptr ? scale * gpu::value<T>(a.weight[c]) : scale;
        float offset = a.bias != nullptr ? gpu::value<T>(a.bias[c]) : 0.0f;
        if (a.scale != nullptr) {
            const float gain = 1.0f + gpu::value<T>(a.scale[of_image]);
            factor *= gain, offset *= gain;
        }
        if (a.shift != nullptr) offset += gpu::value<T>(a.shift[of_image]);
        float* const out = a.table + static_cast<int64_t>(image) * 3 * a.channels + c;
        out[0] = mean, out[a.channels] = factor, out[2 * a.channels] = offset;
    }
}

template <typename T>
GPU_FN void apply(const ApplyArgs& a) {
    const Column at(a);
    if (at.row >= at.rows) return;
    const float* const of_image = a.table + static_cast<int64_t>(at.image) * 3 * a.channels + at.column * kVector;
    float mean[kVector], factor[kVector], offset[kVector], v[kVector];
    load_floats(of_image, mean);
    load_floats(of_image + a.channels, factor);
    load_floats(of_image + 2 * a.channels, offset);
    constexpr int kAtOnce = 4;  // loads that are under way before the first is needed
    for (int first = at.row; first < at.count; first += kAtOnce * at.rows) {
        gpu::Words4 raw[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const int pixel = first + i * at.rows;
            if (pixel < at.count) raw[i] = load_vector(a.x + at.place(a.pixels, pixel));
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const int pixel = first + i * at.rows;
            if (pixel >= at.count) break;
            widen<T>(raw[i], v);
            for (int j = 0; j < kVector; ++j) v[j] = silu((v[j] - mean[j]) * factor[j] + offset[j]);
            store_vector(a.out + at.place(a.pixels, pixel), narrow<T>(v));
        }
    }
}

}  // namespace

GPU_INSTANCE(group_norm_statistics_bf16, kNormThreads, 4, StatisticsArgs, statistics<gpu::BFloat16>)
GPU_INSTANCE(group_norm_statistics_f16, kNormThreads, 4, StatisticsArgs, statistics<gpu::Float16>)
GPU_INSTANCE(group_norm_table_bf16, kNormThreads, 4, TableArgs, table<gpu::BFloat16>)
GPU_INSTANCE(group_norm_table_f16, kNormThreads, 4, TableArgs, table<gpu::Float16>)
GPU_INSTANCE(group_norm_apply_bf16, kNormThreads, 3, ApplyArgs, apply<gpu::BFloat16>)
GPU_INSTANCE(group_norm_apply_f16, kNormThreads, 3, ApplyArgs, apply<gpu::Float16>)

}  // namespace swk::cuda
