// group_norm_silu on the CPU. Bandwidth decides for large images; y and x once each are 8 bytes an element, for about 20
// operations, most of them the exponential. Planes: a worker takes a whole group, and reads it a second time from
// cache if it is no larger than L2. Rows: groups are interleaved, so the image as a whole is read twice.
#include "../ops/group_norm_silu.h"

#include "group_norm.h"

namespace swk::SWK_ISA {
namespace {

// count elements of one channel.
struct Row {
    F32 mean, factor, offset;

    void apply(const float* from, int64_t count, float* to) const {
        int64_t i = 0;
        for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
            const F32 a = one(load(from + i)), b = one(load(from + i + kLanes));
            store(to + i, a);
            store(to + i + kLanes, b);
        }
        for (; i < count; i += kLanes) {
            const int lanes = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
            store(to + i, 1, lanes, one(load(from + i, 1, lanes)));
        }
    }

    F32 one(F32 x) const { return silu(madd(x - mean, factor, offset)); }
};

// ---- planes ---------------------------------------------------------------------------------------------------------

struct Planes {
    const GroupNormInput& input;
    float* out;
    PlaneStrides out_strides;
    int64_t depth;               // channels of a group
    int64_t runs, run;           // a group is `runs` stretches of `run` neighbours
    int64_t chunks_of_run, chunks;  // of a group

    explicit Planes(const GroupNormSiluArgs& args)
        : input(args.input), out(args.out), out_strides(args.out_strides), depth(input.channels / input.groups) {
        const bool joined = input.x_strides.channel == input.pixels || depth == 1;
        runs = joined ? 1 : depth, run = joined ? depth * input.pixels : input.pixels;
        chunks_of_run = (run + kChunkFloats - 1) / kChunkFloats, chunks = runs * chunks_of_run;
    }

    // Mean and M2 of chunk `index` of group `unit` = image * groups + group; returns its size.
    int64_t chunk(int64_t unit, int64_t index, float& mean, float& m2) const {
        const int64_t first = index % chunks_of_run * kChunkFloats, left = run - first;
        const int64_t count = left < kChunkFloats ? left : kChunkFloats;
        const float* group = input.x + unit / input.groups * input.x_strides.batch +
                             unit % input.groups * depth * input.x_strides.channel;
        chunk_moments(group + index / chunks_of_run * input.x_strides.channel + first, count, mean, m2);
        return count;
    }

    // Pixels first .. last - 1 of channel `c` of group `unit`.
    void apply(int64_t unit, const float* group, int64_t c, int64_t first, int64_t last) const {
        const int64_t b = unit / input.groups, channel = unit % input.groups * depth + c;
        const Channel at = channel_of(input, b, channel, group);
        const float* from = input.x + b * input.x_strides.batch + channel * input.x_strides.channel;
        float* to = out + b * out_strides.batch + channel * out_strides.channel;
        const Row row{broadcast(at.mean), broadcast(at.factor), broadcast(at.offset)};
        row.apply(from + first, last - first, to + first);
    }
};

// Each group by one worker.
void whole_groups(const Planes& planes) {
    const GroupNormInput& input = planes.input;
    const int64_t elements = planes.depth * input.pixels;
    parallel_for(input.batch * input.groups, (kGrain + elements - 1) / elements, 1, input.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t unit = begin; unit < end; ++unit) {
            Moments moments;
            for (int64_t index = 0; index < planes.chunks; ++index) {
                float mean, m2;
                const int64_t count = planes.chunk(unit, index, mean, m2);
                moments.merge(static_cast<double>(count), mean, m2);
            }
            float group[2];
            finish_group(moments, input.eps, group);
            for (int64_t c = 0; c < planes.depth; ++c) planes.apply(unit, group, c, 0, input.pixels);
        }
    });
}

// Workers share groups, because these are few: chunks first, then stretches of channels.
void split_groups(const Planes& planes) {
    const GroupNormInput& input = planes.input;
    const int64_t units = input.batch * input.groups;
    float* groups = input.scratch + 2 * units * planes.chunks;
    const auto size = [&](int64_t index) {
        const int64_t left = planes.run - index % planes.chunks_of_run * kChunkFloats;
        return static_cast<double>(left < kChunkFloats ? left : kChunkFloats);
    };
    parallel_for(units * planes.chunks, 1 + kGrain / kChunkFloats, 1, input.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            planes.chunk(i / planes.chunks, i % planes.chunks, input.scratch[2 * i], input.scratch[2 * i + 1]);
        }
    });
    for (int64_t unit = 0; unit < units; ++unit) {
        Moments moments;
        const float* from = input.scratch + 2 * unit * planes.chunks;
        for (int64_t i = 0; i < planes.chunks; ++i) moments.merge(size(i), from[2 * i], from[2 * i + 1]);
        finish_group(moments, input.eps, groups + 2 * unit);
    }
    const int64_t pieces = (input.pixels + kChunkFloats - 1) / kChunkFloats;
    parallel_for(units * planes.depth * pieces, 1 + kGrain / kChunkFloats, 1, input.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i % pieces * kChunkFloats, plane = i / pieces, unit = plane / planes.depth;
            const int64_t last = first + kChunkFloats < input.pixels ? first + kChunkFloats : input.pixels;
            planes.apply(unit, groups + 2 * unit, plane % planes.depth, first, last);
        }
    });
}

// ---- rows -----------------------------------------------------------------------------------------------------------

void apply_row(const float* from, const float* folded, int64_t channels, float* to) {
    const float *mean = folded, *factor = folded + channels, *offset = folded + 2 * channels;
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        store(to + c, silu(madd(load(from + c) - load(mean + c), load(factor + c), load(offset + c))));
    }
    if (c == channels) return;
    const int lanes = static_cast<int>(channels - c);
    const F32 centred = load(from + c, 1, lanes) - load(mean + c, 1, lanes);
    store(to + c, 1, lanes, silu(madd(centred, load(factor + c, 1, lanes), load(offset + c, 1, lanes))));
}

void rows(const GroupNormSiluArgs& args) {
    const GroupNormInput& input = args.input;
    const int64_t channels = input.channels, pixels = input.pixels;
    const float* folded = norm_of_rows(input);
    parallel_for(input.batch * pixels, 1 + kGrain / channels, 1, input.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / pixels, row = i % pixels;
            apply_row(input.x + b * input.x_strides.batch + row * input.x_strides.pixel, folded + 3 * b * channels,
                      channels, args.out + b * args.out_strides.batch + row * args.out_strides.pixel);
        }
    });
}

}  // namespace

void group_norm_silu(const GroupNormSiluArgs& args) {
    const GroupNormInput& input = args.input;
    if (input.batch * input.channels * input.pixels == 0) return;
    if (input.x_strides.channel == 1 && args.out_strides.channel == 1 && input.channels > 1) return rows(args);
    const Planes planes(args);
    // A worker with no group waits; with 8 groups each, the one left over costs at most an eighth.
    const int64_t units = input.batch * input.groups;
    if (units % input.threads == 0 || units >= 8 * input.threads) return whole_groups(planes);
    split_groups(planes);
}

}  // namespace swk::SWK_ISA
