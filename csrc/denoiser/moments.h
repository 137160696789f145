// Mean and sum of squared deviations (M2) of chunks in L1, by the corrected two-pass algorithm of Chan, Golub and
// LeVeque (1983): the mean first, then the deviations, whose sum (0 except for rounding) corrects both. Their formula
// also merges chunks. A large mean causes no cancellation.
#pragma once

#include "../base/simd.h"

namespace swk::SWK_ISA {

struct Moments {
    double count = 0, mean = 0, m2 = 0;

    void merge(double other_count, double other_mean, double other_m2) {
        const double total = count + other_count, difference = other_mean - mean;
        mean += difference * (other_count / total);
        m2 += other_m2 + difference * difference * (count * other_count / total);
        count = total;
    }
};

// Mean and M2 of `count` >= 1 contiguous elements.
static inline void chunk_moments(const float* from, int64_t count, float& mean, float& m2) {
    const float inverse = 1.0f / static_cast<float>(count);
    F32 sums[4] = {}, squares[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
        for (int k = 0; k < 4; ++k) sums[k] += load(from + i + k * kLanes);
    }
    for (; i < count; i += kLanes) sums[0] += load(from + i, 1, left_lanes(count - i));
    const float centre = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) * inverse;

    for (F32& sum : sums) sum = F32{};
    const auto add = [&](F32 centred, int k) {
        sums[k] += centred;
        squares[k] = madd(centred, centred, squares[k]);
    };
    for (i = 0; i + 4 * kLanes <= count; i += 4 * kLanes) {
        for (int k = 0; k < 4; ++k) add(load(from + i + k * kLanes) - centre, k);
    }
    for (; i + kLanes <= count; i += kLanes) add(load(from + i) - centre, 0);
    if (i < count) {  // lanes after the end are read as 0, and their deviation must be 0, too
        float centres[kLanes] = {};
        for (int64_t lane = 0; lane < count - i; ++lane) centres[lane] = centre;
        add(load(from + i, 1, left_lanes(count - i)) - load(centres), 0);
    }
    const float rest = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    mean = centre + rest * inverse;
    m2 = sum_of_lanes((squares[0] + squares[1]) + (squares[2] + squares[3])) - rest * rest * inverse;
}

// Merges the moments of `rows` rows, `stride` apart, into mean and m2 [channels], which hold those of `count` rows, for
// `Vectors` vectors of channels starting at `from`. The last vector has `lanes` channels.
template <int Vectors>
static inline void merge_rows(const float* from, int64_t stride, int64_t rows, int lanes, int64_t count, float* mean,
                              float* m2) {
    const auto at = [&](int64_t row, int v) { return load(from + row * stride + v * kLanes, 1, lanes); };
    const float inverse = 1.0f / static_cast<float>(rows);
    F32 chunk_mean[Vectors] = {}, rest[Vectors] = {}, chunk_m2[Vectors] = {};
    for (int64_t row = 0; row < rows; ++row) {
        for (int v = 0; v < Vectors; ++v) chunk_mean[v] += at(row, v);
    }
    for (int v = 0; v < Vectors; ++v) chunk_mean[v] = chunk_mean[v] * inverse;
    for (int64_t row = 0; row < rows; ++row) {
        for (int v = 0; v < Vectors; ++v) {
            const F32 centred = at(row, v) - chunk_mean[v];
            rest[v] += centred;
            chunk_m2[v] = madd(centred, centred, chunk_m2[v]);
        }
    }
    for (int v = 0; v < Vectors; ++v) {
        chunk_mean[v] = madd(rest[v], broadcast(inverse), chunk_mean[v]);
        chunk_m2[v] = chunk_m2[v] - rest[v] * rest[v] * inverse;
    }
    const float share = static_cast<float>(rows) / static_cast<float>(count + rows);
    const F32 from_mean = broadcast(share), from_difference = broadcast(share * static_cast<float>(count));
    for (int v = 0; v < Vectors; ++v) {
        float *mean_at = mean + v * kLanes, *m2_at = m2 + v * kLanes;
        if (count == 0) {
            store(mean_at, 1, lanes, chunk_mean[v]);
            store(m2_at, 1, lanes, chunk_m2[v]);
            continue;
        }
        const F32 before = load(mean_at, 1, lanes), difference = chunk_mean[v] - before;
        store(mean_at, 1, lanes, madd(difference, from_mean, before));
        store(m2_at, 1, lanes, load(m2_at, 1, lanes) + madd(difference * difference, from_difference, chunk_m2[v]));
    }
}

}  // namespace swk::SWK_ISA
