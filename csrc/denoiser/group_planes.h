// Images in planes (NCHW): statistics of groups and the division of the work among threads.
#pragma once

#include "group_statistics.h"

namespace swk::SWK_ISA {

constexpr int64_t kGrainOfPieces = 1 + kGrain / kChunkFloats;

struct GroupPlanes {
    const GroupNormInput& input;
    int64_t depth, units;           // channels of a group; groups of all images
    int64_t runs, run;              // a group is `runs` contiguous runs of `run` elements
    int64_t chunks_of_run, chunks;  // of a group
    int64_t pieces;                 // of a channel's pixels

    explicit GroupPlanes(const GroupNormInput& from)
        : input(from), depth(from.channels / from.groups), units(from.batch * from.groups) {
        const bool joined = input.x_strides.channel == input.pixels || depth == 1;
        runs = joined ? 1 : depth, run = joined ? depth * input.pixels : input.pixels;
        chunks_of_run = (run + kChunkFloats - 1) / kChunkFloats, chunks = runs * chunks_of_run;
        pieces = (input.pixels + kChunkFloats - 1) / kChunkFloats;
    }

    // Whether each group is processed by one worker. A worker without a group waits: with at least 8 groups per worker
    // that costs at most an eighth of the time.
    bool enough_groups() const { return units % input.threads == 0 || units >= 8 * input.threads; }

    int64_t grain_of_groups() const { return (kGrain + depth * input.pixels - 1) / (depth * input.pixels); }

    // The first pixel of a piece.
    int64_t first(int64_t piece) const { return piece < pieces ? piece * kChunkFloats : input.pixels; }

    int64_t chunk_size(int64_t index) const {
        const int64_t left = run - index % chunks_of_run * kChunkFloats;
        return left < kChunkFloats ? left : kChunkFloats;
    }

    // Mean and M2 of chunk `index` of group `unit` = image * groups + group.
    void chunk(int64_t unit, int64_t index, float& mean, float& m2) const {
        const float* group = input.x + unit / input.groups * input.x_strides.batch +
                             unit % input.groups * depth * input.x_strides.channel;
        chunk_moments(group + index / chunks_of_run * input.x_strides.channel + index % chunks_of_run * kChunkFloats,
                      chunk_size(index), mean, m2);
    }

    // group[0] = mean, group[1] = 1 / deviation.
    void statistics(int64_t unit, float* group) const {
        Moments moments;
        for (int64_t index = 0; index < chunks; ++index) {
            float mean, m2;
            chunk(unit, index, mean, m2);
            moments.merge(static_cast<double>(chunk_size(index)), mean, m2);
        }
        finish_group(moments, input.eps, group);
    }

    // The same for all groups, with chunks divided among workers. Stored in scratch after 2 floats per chunk.
    const float* shared_statistics() const {
        float* groups = input.scratch + 2 * units * chunks;
        parallel_for(units * chunks, kGrainOfPieces, 1, input.threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) {
                chunk(i / chunks, i % chunks, input.scratch[2 * i], input.scratch[2 * i + 1]);
            }
        });
        for (int64_t unit = 0; unit < units; ++unit) {
            Moments moments;
            const float* from = input.scratch + 2 * unit * chunks;
            for (int64_t i = 0; i < chunks; ++i) {
                moments.merge(static_cast<double>(chunk_size(i)), from[2 * i], from[2 * i + 1]);
            }
            finish_group(moments, input.eps, groups + 2 * unit);
        }
        return groups;
    }
};

}  // namespace swk::SWK_ISA
