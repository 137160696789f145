// group_norm_silu on the CPU. Bandwidth decides for large images; y and x once each are 8 bytes an element, for about 20
// operations, most of them the exponential. Planes: a worker takes a whole group, and reads it a second time from
// cache if it is no larger than L2. Rows: groups are interleaved, so the image as a whole is read twice.
#include "../ops/group_norm_silu.h"

#include "moments.h"
#include "parallel.h"

namespace swk::SWK_ISA {
namespace {

constexpr int64_t kGrain = 8192;  // elements of 4 to 8 cycles each: 10 us, and waking torch's threads takes 2

// v sigmoid(v). The exponential may not be asked for more than e^88; below v = -88 the result is 0 but for 1e-38 v.
F32 silu(F32 v) { return v / (exponential(-maximum(broadcast(-88.0f), v)) + 1.0f); }

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

// What is added up for the statistics and applied to every element of channel c of image b.
struct Channel {
    float mean, factor, offset;  // silu((x - mean) * factor + offset)
};

Channel channel_of(const GroupNormSiluArgs& args, int64_t b, int64_t c, const float* group) {
    const GroupNormWeights& norm = args.norm;
    const int64_t image = b * args.channels + c;
    const float keep = norm.scale ? 1.0f + norm.scale[image] : 1.0f;
    const float bias = norm.bias ? norm.bias[c] * keep : 0.0f;
    return {group[0], (norm.weight ? group[1] * norm.weight[c] : group[1]) * keep,
            norm.shift ? bias + norm.shift[image] : bias};
}

// group[0] = mean, group[1] = 1 / sqrt(variance + eps).
void finish_group(const Moments& moments, float eps, float* group) {
    group[0] = static_cast<float>(moments.mean);
    group[1] = static_cast<float>(1.0 / __builtin_sqrt(moments.m2 / moments.count + static_cast<double>(eps)));
}

// ---- planes ---------------------------------------------------------------------------------------------------------

struct Planes {
    const GroupNormSiluArgs& args;
    int64_t depth;               // channels of a group
    int64_t runs, run;           // a group is `runs` stretches of `run` neighbours
    int64_t chunks_of_run, chunks;  // of a group

    explicit Planes(const GroupNormSiluArgs& args_) : args(args_), depth(args.channels / args.groups) {
        const bool joined = args.x_strides.channel == args.pixels || depth == 1;
        runs = joined ? 1 : depth, run = joined ? depth * args.pixels : args.pixels;
        chunks_of_run = (run + kChunkFloats - 1) / kChunkFloats, chunks = runs * chunks_of_run;
    }

    // Mean and M2 of chunk `index` of group `unit` = image * groups + group; returns its size.
    int64_t chunk(int64_t unit, int64_t index, float& mean, float& m2) const {
        const int64_t first = index % chunks_of_run * kChunkFloats, left = run - first;
        const int64_t count = left < kChunkFloats ? left : kChunkFloats;
        const float* group = args.x + unit / args.groups * args.x_strides.batch +
                             unit % args.groups * depth * args.x_strides.channel;
        chunk_moments(group + index / chunks_of_run * args.x_strides.channel + first, count, mean, m2);
        return count;
    }

    // Pixels first .. last - 1 of channel `c` of group `unit`.
    void apply(int64_t unit, const float* group, int64_t c, int64_t first, int64_t last) const {
        const int64_t b = unit / args.groups, channel = unit % args.groups * depth + c;
        const Channel at = channel_of(args, b, channel, group);
        const float* from = args.x + b * args.x_strides.batch + channel * args.x_strides.channel;
        float* to = args.out + b * args.out_strides.batch + channel * args.out_strides.channel;
        const Row row{broadcast(at.mean), broadcast(at.factor), broadcast(at.offset)};
        row.apply(from + first, last - first, to + first);
    }
};

// Each group by one worker.
void whole_groups(const Planes& planes) {
    const GroupNormSiluArgs& args = planes.args;
    const int64_t elements = planes.depth * args.pixels;
    parallel_for(args.batch * args.groups, (kGrain + elements - 1) / elements, 1, args.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t unit = begin; unit < end; ++unit) {
            Moments moments;
            for (int64_t index = 0; index < planes.chunks; ++index) {
                float mean, m2;
                const int64_t count = planes.chunk(unit, index, mean, m2);
                moments.merge(static_cast<double>(count), mean, m2);
            }
            float group[2];
            finish_group(moments, args.eps, group);
            for (int64_t c = 0; c < planes.depth; ++c) planes.apply(unit, group, c, 0, args.pixels);
        }
    });
}

// Workers share groups, because these are few: chunks first, then stretches of channels.
void split_groups(const Planes& planes) {
    const GroupNormSiluArgs& args = planes.args;
    const int64_t units = args.batch * args.groups;
    float* groups = args.scratch + 2 * units * planes.chunks;
    const auto size = [&](int64_t index) {
        const int64_t left = planes.run - index % planes.chunks_of_run * kChunkFloats;
        return static_cast<double>(left < kChunkFloats ? left : kChunkFloats);
    };
    parallel_for(units * planes.chunks, 1 + kGrain / kChunkFloats, 1, args.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            planes.chunk(i / planes.chunks, i % planes.chunks, args.scratch[2 * i], args.scratch[2 * i + 1]);
        }
    });
    for (int64_t unit = 0; unit < units; ++unit) {
        Moments moments;
        const float* from = args.scratch + 2 * unit * planes.chunks;
        for (int64_t i = 0; i < planes.chunks; ++i) moments.merge(size(i), from[2 * i], from[2 * i + 1]);
        finish_group(moments, args.eps, groups + 2 * unit);
    }
    const int64_t pieces = (args.pixels + kChunkFloats - 1) / kChunkFloats;
    parallel_for(units * planes.depth * pieces, 1 + kGrain / kChunkFloats, 1, args.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i % pieces * kChunkFloats, plane = i / pieces, unit = plane / planes.depth;
            const int64_t last = first + kChunkFloats < args.pixels ? first + kChunkFloats : args.pixels;
            planes.apply(unit, groups + 2 * unit, plane % planes.depth, first, last);
        }
    });
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// Statistics of image b's stripe of rows: mean and m2, [channels].
void stripe_moments(const GroupNormSiluArgs& args, int64_t b, int64_t first, int64_t last, float* mean, float* m2) {
    const int64_t channels = args.channels, stride = args.x_strides.pixel;
    const int64_t most = channels < kChunkFloats ? kChunkFloats / channels : 1;
    for (int64_t row = first; row < last; row += most) {
        const int64_t rows = last - row < most ? last - row : most, count = row - first;
        const float* from = args.x + b * args.x_strides.batch + row * stride;
        int64_t c = 0;
        for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
            merge_rows<4>(from + c, stride, rows, kLanes, count, mean + c, m2 + c);
        }
        for (; c < channels; c += kLanes) {
            const int lanes = channels - c < kLanes ? static_cast<int>(channels - c) : kLanes;
            merge_rows<1>(from + c, stride, rows, lanes, count, mean + c, m2 + c);
        }
    }
}

// From stripes' moments, [stripe][mean, m2][channels], what is applied to each channel: [mean, factor, offset][channels].
void fold_rows(const GroupNormSiluArgs& args, int64_t b, int64_t stripes, const float* moments, float* folded) {
    const int64_t channels = args.channels, depth = channels / args.groups;
    for (int64_t g = 0; g < args.groups; ++g) {
        Moments total;
        for (int64_t stripe = 0; stripe < stripes; ++stripe) {
            const double rows =
                static_cast<double>(args.pixels * (stripe + 1) / stripes - args.pixels * stripe / stripes);
            const float *mean = moments + 2 * stripe * channels, *m2 = mean + channels;
            double sum = 0, squares = 0;
            for (int64_t c = g * depth; c < (g + 1) * depth; ++c) sum += mean[c];
            const double centre = sum / static_cast<double>(depth);
            for (int64_t c = g * depth; c < (g + 1) * depth; ++c) {
                squares += m2[c] + rows * (mean[c] - centre) * (mean[c] - centre);
            }
            total.merge(rows * static_cast<double>(depth), centre, squares);
        }
        float group[2];
        finish_group(total, args.eps, group);
        for (int64_t c = g * depth; c < (g + 1) * depth; ++c) {
            const Channel at = channel_of(args, b, c, group);
            folded[c] = at.mean, folded[channels + c] = at.factor, folded[2 * channels + c] = at.offset;
        }
    }
}

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
    const int64_t channels = args.channels, pixels = args.pixels;
    const int64_t chunks = (pixels * channels + kChunkFloats - 1) / kChunkFloats;
    const int64_t most = chunks < kStripes ? chunks : kStripes, stripes = most < pixels ? most : pixels;
    const int64_t stripe_floats = 2 * channels;
    float* folded = args.scratch + args.batch * stripes * stripe_floats;
    const auto grain = [&](int64_t items) { return 1 + kGrain * items / (args.batch * pixels * channels); };
    parallel_for(args.batch * stripes, grain(args.batch * stripes), 1, args.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t stripe = i % stripes;
            float* mean = args.scratch + i * stripe_floats;
            stripe_moments(args, i / stripes, pixels * stripe / stripes, pixels * (stripe + 1) / stripes, mean,
                           mean + channels);
        }
    });
    for (int64_t b = 0; b < args.batch; ++b) {
        fold_rows(args, b, stripes, args.scratch + b * stripes * stripe_floats, folded + 3 * b * channels);
    }
    parallel_for(args.batch * pixels, grain(args.batch * pixels), 1, args.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / pixels, row = i % pixels;
            apply_row(args.x + b * args.x_strides.batch + row * args.x_strides.pixel, folded + 3 * b * channels,
                      channels, args.out + b * args.out_strides.batch + row * args.out_strides.pixel);
        }
    });
}

}  // namespace

void group_norm_silu(const GroupNormSiluArgs& args) {
    if (args.batch * args.channels * args.pixels == 0) return;
    if (args.x_strides.channel == 1 && args.out_strides.channel == 1 && args.channels > 1) return rows(args);
    const Planes planes(args);
    // A worker with no group waits; with 8 groups each, the one left over costs at most an eighth.
    const int64_t units = args.batch * args.groups;
    if (units % args.threads == 0 || units >= 8 * args.threads) return whole_groups(planes);
    split_groups(planes);
}

}  // namespace swk::SWK_ISA
