// Gradients of group_norm_silu on the CPU, float32. Formulas: group_norm_silu.h.
//
//   dv = dy silu'(v)
//   dx = (gain dv - mean(gain dv) - n mean(gain dv n)) / deviation,  gain = weight (1 + scale), n = normalised x
//
// Shapes: x, dy and dx [batch][channels][pixels]; sums [batch][dv, dv n][channels].
// Memory layout: planes (NCHW) or rows (channels_last), the same for all three.
// Three passes: the statistics, which are computed again (4 bytes per element; nothing is kept from the forward pass);
// dv, stored in dx, and its sums (12 bytes); dx from dv and x (12 bytes). That is 28 bytes per element for about 35
// operations and no MACs to speak of. In planes a worker takes a whole group, so most reads hit a cache.
#include "group_norm_silu.h"

#include "group_planes.h"

namespace swk::SWK_ISA {
namespace {

using Args = GroupNormSiluBackwardArgs;

// grad silu'(v) = grad s (1 + v (1 - s)), s = sigmoid(v) = 1 / (1 + e), 1 - s = e s. The bound -88 is that of silu.
F32 through_silu(F32 grad, F32 v) {
    const F32 e = exponential(-maximum(broadcast(-88.0f), v)), s = broadcast(1.0f) / (e + 1.0f);
    return grad * s * madd(v, e * s, broadcast(1.0f));
}

// dx = factor dv + (x - mean) slope + constant.
struct Group {
    float slope, constant;
};

// Computes `Group` and writes `args.sums`; sum(c, dv, product) gives the sums of dv and dv (x - mean) over channel c.
template <class Sum>
Group fold_group(const Args& args, int64_t unit, const float* group, const Sum& sum) {
    const GroupNormInput& input = args.input;
    const int64_t depth = input.channels / input.groups, b = unit / input.groups, begin = unit % input.groups * depth;
    const double inverse = group[1], count = static_cast<double>(depth * input.pixels);
    float* sums = args.sums + 2 * b * input.channels;
    double of_grad = 0, of_product = 0;
    for (int64_t c = begin; c < begin + depth; ++c) {
        double dv = 0, product = 0;
        sum(c, dv, product);
        product *= inverse;
        sums[c] = static_cast<float>(dv), sums[input.channels + c] = static_cast<float>(product);
        const double keep = input.norm.scale ? 1.0 + input.norm.scale[b * input.channels + c] : 1.0;
        const double gain = input.norm.weight ? input.norm.weight[c] * keep : keep;
        of_grad += gain * dv, of_product += gain * product;
    }
    return {static_cast<float>(-inverse * inverse * of_product / count), static_cast<float>(-inverse * of_grad / count)};
}

// ---- planes ---------------------------------------------------------------------------------------------------------

struct Planes : GroupPlanes {
    const Args& args;
    float* partial;  // [image][channel][piece][sums of dv and of dv (x - mean)]

    explicit Planes(const Args& from)
        : GroupPlanes(from.input), args(from), partial(from.scratch) {}

    int64_t unit_of(int64_t plane) const { return plane / depth; }
    int64_t image_of(int64_t plane) const { return plane / input.channels; }
    const float* at(const float* data, const PlaneStrides& strides, int64_t plane, int64_t piece) const {
        return data + image_of(plane) * strides.batch + plane % input.channels * strides.channel + first(piece);
    }
    float* target(int64_t plane, int64_t piece) const {
        return const_cast<float*>(at(args.grad_x, args.grad_x_strides, plane, piece));
    }

    // Writes dv of a piece and its sums. plane = image * channels + channel.
    void sums(int64_t plane, int64_t piece, const float* group) const {
        const Channel channel = channel_of(input, image_of(plane), plane % input.channels, group);
        const F32 mean = broadcast(channel.mean), factor = broadcast(channel.factor), offset = broadcast(channel.offset);
        const float *x = at(input.x, input.x_strides, plane, piece), *grad = at(args.grad, args.grad_strides, plane, piece);
        float* to = target(plane, piece);
        F32 of_grad[2] = {}, of_product[2] = {};
        const auto add = [&](int64_t i, int lanes, int k) {
            const F32 centred = load(x + i, 1, lanes) - mean;
            const F32 dv = through_silu(load(grad + i, 1, lanes), madd(centred, factor, offset));
            store(to + i, 1, lanes, dv);
            of_grad[k] += dv;
            of_product[k] = madd(dv, centred, of_product[k]);  // dv is 0 beyond the end
        };
        const int64_t count = first(piece + 1) - first(piece);
        int64_t i = 0;
        for (; i + 2 * kLanes <= count; i += 2 * kLanes) add(i, kLanes, 0), add(i + kLanes, kLanes, 1);
        for (; i < count; i += kLanes) add(i, left_lanes(count - i), 0);
        float* sums = partial + 2 * (plane * pieces + piece);
        sums[0] = sum_of_lanes(of_grad[0] + of_grad[1]), sums[1] = sum_of_lanes(of_product[0] + of_product[1]);
    }

    Group fold(int64_t unit, const float* group) const {
        const int64_t image = unit / input.groups * input.channels;
        return fold_group(args, unit, group, [&](int64_t c, double& dv, double& product) {
            const float* from = partial + 2 * (image + c) * pieces;
            for (int64_t piece = 0; piece < pieces; ++piece) dv += from[2 * piece], product += from[2 * piece + 1];
        });
    }

    // Replaces dv of a piece by dx.
    void apply(int64_t plane, int64_t piece, const float* group, const Group& folded) const {
        const Channel channel = channel_of(input, image_of(plane), plane % input.channels, group);
        const F32 mean = broadcast(channel.mean), factor = broadcast(channel.factor);
        const F32 slope = broadcast(folded.slope), constant = broadcast(folded.constant);
        const float* x = at(input.x, input.x_strides, plane, piece);
        float* to = target(plane, piece);
        const int64_t count = first(piece + 1) - first(piece);
        const auto put = [&](int64_t i, int lanes) {
            const F32 centred = load(x + i, 1, lanes) - mean;
            store(to + i, 1, lanes, madd(load(to + i, 1, lanes), factor, madd(centred, slope, constant)));
        };
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) put(i, kLanes);
        if (i < count) put(i, left_lanes(count - i));
    }
};

// Each group is processed by one worker.
void whole_groups(const Planes& planes) {
    const int64_t pieces = planes.pieces;
    parallel_for(planes.units, planes.grain_of_groups(), 1, planes.input.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t unit = begin; unit < end; ++unit) {
            float group[2];
            planes.statistics(unit, group);
            const int64_t first = unit * planes.depth * pieces, last = first + planes.depth * pieces;
            for (int64_t i = first; i < last; ++i) planes.sums(i / pieces, i % pieces, group);
            const Group folded = planes.fold(unit, group);
            for (int64_t i = first; i < last; ++i) planes.apply(i / pieces, i % pieces, group, folded);
        }
    });
}

// Few groups: workers share them.
void split_groups(const Planes& planes) {
    const float* groups = planes.shared_statistics();
    const int64_t pieces = planes.pieces;
    const auto each = [&](const auto& pass) {
        parallel_for(planes.units * planes.depth * pieces, kGrainOfPieces, 1, planes.input.threads,
                     [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) pass(i / pieces, i % pieces, planes.unit_of(i / pieces));
        });
    };
    each([&](int64_t plane, int64_t piece, int64_t unit) { planes.sums(plane, piece, groups + 2 * unit); });
    float* folded = planes.input.scratch;  // the moments of the chunks are not needed any more
    for (int64_t unit = 0; unit < planes.units; ++unit) {
        const Group group = planes.fold(unit, groups + 2 * unit);
        folded[2 * unit] = group.slope, folded[2 * unit + 1] = group.constant;
    }
    each([&](int64_t plane, int64_t piece, int64_t unit) {
        planes.apply(plane, piece, groups + 2 * unit, {folded[2 * unit], folded[2 * unit + 1]});
    });
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// Consecutive pixels of one image; strides are those between pixels.
struct Rows {
    const float *x, *grad;
    float* to;
    int64_t x_stride, grad_stride, to_stride, count;

    Rows(const Args& args, int64_t b, int64_t first, int64_t pixels)
        : x(args.input.x + b * args.input.x_strides.batch + first * args.input.x_strides.pixel),
          grad(args.grad + b * args.grad_strides.batch + first * args.grad_strides.pixel),
          to(args.grad_x + b * args.grad_x_strides.batch + first * args.grad_x_strides.pixel),
          x_stride(args.input.x_strides.pixel), grad_stride(args.grad_strides.pixel),
          to_stride(args.grad_x_strides.pixel), count(pixels) {}
};

// Writes dv of `Vectors` vectors of channels starting at `c` and adds its sums to [dv, dv (x - mean)][channels]. The
// last vector has `lanes` channels. folded: [mean, factor, offset][channels].
template <int Vectors>
void sums_of_rows(const Rows& rows, int64_t c, int lanes, int64_t channels, const float* folded, float* sums) {
    const auto at = [&](const float* from, int v) { return load(from + c + v * kLanes, 1, lanes); };
    F32 mean[Vectors], factor[Vectors], offset[Vectors], of_grad[Vectors] = {}, of_product[Vectors] = {};
    for (int v = 0; v < Vectors; ++v) {
        mean[v] = at(folded, v), factor[v] = at(folded + channels, v), offset[v] = at(folded + 2 * channels, v);
    }
    for (int64_t row = 0; row < rows.count; ++row) {
        for (int v = 0; v < Vectors; ++v) {
            const F32 centred = at(rows.x + row * rows.x_stride, v) - mean[v];
            const F32 grad = at(rows.grad + row * rows.grad_stride, v);
            const F32 dv = through_silu(grad, madd(centred, factor[v], offset[v]));
            store(rows.to + row * rows.to_stride + c + v * kLanes, 1, lanes, dv);
            of_grad[v] += dv;
            of_product[v] = madd(dv, centred, of_product[v]);
        }
    }
    for (int v = 0; v < Vectors; ++v) {
        float *grads = sums + c + v * kLanes, *products = grads + channels;
        store(grads, 1, lanes, load(grads, 1, lanes) + of_grad[v]);
        store(products, 1, lanes, load(products, 1, lanes) + of_product[v]);
    }
}

void stripe_sums(const Args& args, int64_t b, int64_t first, int64_t last, const float* folded, float* sums) {
    const int64_t channels = args.input.channels, most = channels < kChunkFloats ? kChunkFloats / channels : 1;
    for (int64_t c = 0; c < 2 * channels; ++c) sums[c] = 0;
    for (int64_t row = first; row < last; row += most) {
        const Rows rows(args, b, row, last - row < most ? last - row : most);
        int64_t c = 0;
        for (; c + 2 * kLanes <= channels; c += 2 * kLanes) sums_of_rows<2>(rows, c, kLanes, channels, folded, sums);
        for (; c < channels; c += kLanes) sums_of_rows<1>(rows, c, left_lanes(channels - c), channels, folded, sums);
    }
}

// Computes lines [slope, constant][channels] from the sums of the stripes, [stripe][dv, dv (x - mean)][channels].
void fold_image(const Args& args, int64_t b, const float* groups, int64_t stripes, const float* sums, float* lines) {
    const int64_t channels = args.input.channels, depth = channels / args.input.groups;
    for (int64_t g = 0; g < args.input.groups; ++g) {
        const int64_t unit = b * args.input.groups + g;
        const Group group = fold_group(args, unit, groups + 2 * unit, [&](int64_t c, double& dv, double& product) {
            for (int64_t stripe = 0; stripe < stripes; ++stripe) {
                dv += sums[2 * stripe * channels + c], product += sums[(2 * stripe + 1) * channels + c];
            }
        });
        for (int64_t c = g * depth; c < (g + 1) * depth; ++c) lines[c] = group.slope, lines[channels + c] = group.constant;
    }
}

void apply_row(const float* x, const float* folded, const float* lines, int64_t channels, float* to) {
    const auto put = [&](int64_t c, int lanes) {
        const F32 centred = load(x + c, 1, lanes) - load(folded + c, 1, lanes);
        const F32 line = madd(centred, load(lines + c, 1, lanes), load(lines + channels + c, 1, lanes));
        store(to + c, 1, lanes, madd(load(to + c, 1, lanes), load(folded + channels + c, 1, lanes), line));
    };
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) put(c, kLanes);
    if (c < channels) put(c, left_lanes(channels - c));
}

void rows(const Args& args) {
    const GroupNormInput& input = args.input;
    const int64_t channels = input.channels, pixels = input.pixels, stripes = stripes_of_image(input);
    const float* folded = norm_of_rows(input);
    const float* groups = folded + 3 * input.batch * channels;
    float* sums = input.scratch;  // replaces the moments of the stripes, which are not needed any more
    float* lines = args.scratch;
    parallel_for(input.batch * stripes, 1 + kGrain * stripes / (pixels * channels), 1, input.threads,
                 [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / stripes, stripe = i % stripes;
            stripe_sums(args, b, pixels * stripe / stripes, pixels * (stripe + 1) / stripes, folded + 3 * b * channels,
                        sums + 2 * i * channels);
        }
    });
    parallel_for(input.batch, 1 + kGrain / (stripes * channels), 1, input.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t b = begin; b < end; ++b) {
            fold_image(args, b, groups, stripes, sums + 2 * b * stripes * channels, lines + 2 * b * channels);
        }
    });
    parallel_for(input.batch * pixels, 1 + kGrain / channels, 1, input.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / pixels;
            const Rows row(args, b, i % pixels, 1);
            apply_row(row.x, folded + 3 * b * channels, lines + 2 * b * channels, channels, row.to);
        }
    });
}

}  // namespace

void group_norm_silu_backward(const GroupNormSiluBackwardArgs& args) {
    const GroupNormInput& input = args.input;
    if (input.batch * input.channels * input.pixels == 0) return;
    const bool channels_apart = input.x_strides.channel != 1 || args.grad_strides.channel != 1 ||
                                args.grad_x_strides.channel != 1;
    // A single channel: see group_norm_silu.cpp.
    const bool pixels_apart = input.channels > 1 || input.x_strides.pixel != 1 || args.grad_strides.pixel != 1 ||
                              args.grad_x_strides.pixel != 1;
    if (!channels_apart && pixels_apart) return rows(args);
    const Planes planes(args);
    return planes.enough_groups() ? whole_groups(planes) : split_groups(planes);
}

}  // namespace swk::SWK_ISA
