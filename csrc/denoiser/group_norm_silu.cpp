// group_norm_silu on the CPU, float32.
//
//   y = silu(v), v = ((x - mean) / sqrt(variance + eps) weight + bias) (1 + scale) + shift      (group_norm.h)
//
// Shapes: x and y [batch][channels][pixels]; statistics over channels / groups channels by `pixels` pixels.
// Memory layout: planes (NCHW) or rows (channels_last).
// Bytes per element: 8 (x read, y written) if the second read of x hits a cache, otherwise 12. MACs: none to speak of;
// about 20 operations per element, most of them for the exponential. Bandwidth decides the time of large images.
// Planes: a worker takes a whole group and reads it again from L2 if it fits. Rows: the groups are interleaved, so the
// whole image is read twice.
#include "group_norm_silu.h"

#include "group_planes.h"

namespace swk::SWK_ISA {
namespace {

// Applies the norm and SiLU to `count` elements of one channel.
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

struct Planes : GroupPlanes {
    float* out;
    PlaneStrides out_strides;

    explicit Planes(const GroupNormSiluArgs& args)
        : GroupPlanes(args.input), out(args.out), out_strides(args.out_strides) {}

    // Writes pixels first .. last - 1 of channel `c` of group `unit`.
    void apply(int64_t unit, const float* group, int64_t c, int64_t first, int64_t last) const {
        const int64_t b = unit / input.groups, channel = unit % input.groups * depth + c;
        const Channel at = channel_of(input, b, channel, group);
        const float* from = input.x + b * input.x_strides.batch + channel * input.x_strides.channel;
        float* to = out + b * out_strides.batch + channel * out_strides.channel;
        const Row row{broadcast(at.mean), broadcast(at.factor), broadcast(at.offset)};
        row.apply(from + first, last - first, to + first);
    }
};

// Each group is processed by one worker.
void whole_groups(const Planes& planes) {
    const GroupNormInput& input = planes.input;
    parallel_for(planes.units, planes.grain_of_groups(), 1, input.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t unit = begin; unit < end; ++unit) {
            float group[2];
            planes.statistics(unit, group);
            for (int64_t c = 0; c < planes.depth; ++c) planes.apply(unit, group, c, 0, input.pixels);
        }
    });
}

// Few groups: workers share them, first chunks for the statistics, then pieces of channels for the result.
void split_groups(const Planes& planes) {
    const GroupNormInput& input = planes.input;
    const float* groups = planes.shared_statistics();
    parallel_for(planes.units * planes.depth * planes.pieces, kGrainOfPieces, 1, input.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t plane = i / planes.pieces, piece = i % planes.pieces, unit = plane / planes.depth;
            planes.apply(unit, groups + 2 * unit, plane % planes.depth, planes.first(piece), planes.first(piece + 1));
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
    // With a single channel the two layouts are the same, unless it is a slice of rows with more channels.
    const bool apart = input.channels > 1 || input.x_strides.pixel != 1 || args.out_strides.pixel != 1;
    if (input.x_strides.channel == 1 && args.out_strides.channel == 1 && apart) return rows(args);
    const Planes planes(args);
    return planes.enough_groups() ? whole_groups(planes) : split_groups(planes);
}

}  // namespace swk::SWK_ISA
