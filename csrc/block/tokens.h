// Panels of tokens between an image with any strides and scratch ([channel][kPanel]), and the norm over their channels.
#pragma once

#include "../base/tile.h"
#include "swda_block.h"

namespace swk::SWK_ISA {

template <class Word>
static inline const Word* weight_words(const TiledMatrix& matrix) {
    return reinterpret_cast<const Word*>(matrix.weight);
}

// Offsets of a panel's tokens in the image, in elements, at channel 0.
struct PanelPlace {
    int count;  // tokens; the remaining lanes of the panel are read as 0 and not written
    int64_t offset[kPanel];
};

// Panel `panel` of consecutive pixels of an image, for gated_ffn, which needs no windows.
static inline PanelPlace pixel_place(const SwdaBlockArgs& args, const ImageView& image, int64_t panel) {
    const int64_t plane = args.height * args.width, pixels = args.batch * plane;
    PanelPlace place{};
    for (int64_t pixel = panel * kPanel; place.count < kPanel && pixel < pixels; ++pixel) {
        place.offset[place.count++] = pixel / plane * image.batch_stride + pixel % plane / args.width * image.row_stride +
                                      pixel % args.width * image.column_stride;
    }
    return place;
}

// Whether the `length` tokens starting at `lane` are contiguous in memory.
static inline bool contiguous(const PanelPlace& place, int lane, int length = kLanes) {
    if (place.count - lane < length) return false;
    for (int i = 1; i < length; ++i) {
        if (place.offset[lane + i] != place.offset[lane] + i) return false;
    }
    return true;
}

// Whether both halves of the vector of tokens at `lane` are, as two rows of a window half a vector wide.
static inline bool in_halves(const PanelPlace& place, int lane) {
    return contiguous(place, lane, kLanes / 2) && contiguous(place, lane + kLanes / 2, kLanes / 2);
}

// Reads lanes lane .. lane + kLanes - 1 of a panel: in vectors or halves of them if tokens are contiguous in memory,
// through a transposition in registers if channels are, otherwise element by element. Element is float or Bfloat16.
template <class Element>
static inline void read_lanes(const ImageView& image, const PanelPlace& place, int lane, int64_t channels, float* to) {
    const Element* from = reinterpret_cast<const Element*>(image.data);
    const int left = place.count - lane, count = left < 0 ? 0 : left < kLanes ? left : kLanes;
    const int64_t* offset = place.offset + lane;
    if (contiguous(place, lane)) {
        for (int64_t c = 0; c < channels; ++c) store(to + c * kPanel, load(from + offset[0] + c * image.channel_stride));
        return;
    }
    if (in_halves(place, lane)) {
        const Element *low = from + offset[0], *high = from + offset[kLanes / 2];
        for (int64_t c = 0; c < channels; ++c) {
            store(to + c * kPanel, load_halves(low + c * image.channel_stride, high + c * image.channel_stride));
        }
        return;
    }
    if (image.channel_stride == 1 && channels >= kLanes) {
        for (int64_t next = 0; next < channels; next += kLanes) {
            // The last block ends with the last channel; it may repeat channels of the one before.
            const int64_t c = next + kLanes <= channels ? next : channels - kLanes;
            F32 block[kLanes] = {};
            for (int i = 0; i < count; ++i) block[i] = load(from + offset[i] + c);
            transpose(block);
            for (int i = 0; i < kLanes; ++i) store(to + (c + i) * kPanel, block[i]);
        }
        return;
    }
    for (int64_t c = 0; c < channels; ++c) {
        for (int i = 0; i < kLanes; ++i) {
            to[c * kPanel + i] = i < count ? number(from[offset[i] + c * image.channel_stride]) : 0.0f;
        }
    }
}

static inline void read_panel(const ImageView& image, const PanelPlace& place, int64_t channels, float* to) {
    for (int lane = 0; lane < kPanel; lane += kLanes) {
        if (image.bfloat16) read_lanes<Bfloat16>(image, place, lane, channels, to + lane);
        else read_lanes<float>(image, place, lane, channels, to + lane);
    }
}

template <class Element>
static inline void write_lanes(const ImageView& image, const PanelPlace& place, int lane, int64_t channels,
                               const float* from) {
    Element* to = reinterpret_cast<Element*>(image.data);
    const int left = place.count - lane, count = left < 0 ? 0 : left < kLanes ? left : kLanes;
    const int64_t* offset = place.offset + lane;
    if (contiguous(place, lane)) {
        for (int64_t c = 0; c < channels; ++c) store(to + offset[0] + c * image.channel_stride, load(from + c * kPanel));
        return;
    }
    if (in_halves(place, lane)) {
        Element *low = to + offset[0], *high = to + offset[kLanes / 2];
        for (int64_t c = 0; c < channels; ++c) {
            store_halves(low + c * image.channel_stride, high + c * image.channel_stride, load(from + c * kPanel));
        }
        return;
    }
    if (image.channel_stride == 1 && channels >= kLanes) {
        for (int64_t next = 0; next < channels; next += kLanes) {
            const int64_t c = next + kLanes <= channels ? next : channels - kLanes;
            F32 block[kLanes];
            for (int i = 0; i < kLanes; ++i) block[i] = load(from + (c + i) * kPanel);
            transpose(block);
            for (int i = 0; i < count; ++i) store(to + offset[i] + c, block[i]);
        }
        return;
    }
    for (int64_t c = 0; c < channels; ++c) {
        for (int i = 0; i < count; ++i) set(to + offset[i] + c * image.channel_stride, from[c * kPanel + i]);
    }
}

static inline void write_panel(const ImageView& image, const PanelPlace& place, int64_t channels, const float* from) {
    for (int lane = 0; lane < kPanel; lane += kLanes) {
        if (image.bfloat16) write_lanes<Bfloat16>(image, place, lane, channels, from + lane);
        else write_lanes<float>(image, place, lane, channels, from + lane);
    }
}

// to = LayerNorm over the channels of each token, eps 1e-5, as factors of a product: [word][kPanel]. `statistics`
// [2][kPanel], mean and 1 / sqrt(variance + eps), for norm_panel_backward, unless it is null.
template <class Word>
static inline void norm_panel(const float* from, int64_t channels, const float* weight, const float* bias, Word* to,
                              float* statistics = nullptr) {
    const float inverse = 1.0f / static_cast<float>(channels);
    for (int lane = 0; lane < kPanel; lane += kLanes) {
        // Four partial sums each: four independent chains of additions, and smaller rounding errors.
        F32 sum[4] = {}, square[4] = {};
        for (int64_t c = 0; c < channels; c += 4) {
            // Unrolled, so that the sums are in registers.
            for (int i = 0; i < 4 && c + i < channels; ++i) sum[i] += load(from + (c + i) * kPanel + lane);
        }
        const F32 mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * inverse;
        for (int64_t c = 0; c < channels; c += 4) {
            for (int i = 0; i < 4 && c + i < channels; ++i) {
                const F32 centred = load(from + (c + i) * kPanel + lane) - mean;
                square[i] = madd(centred, centred, square[i]);
            }
        }
        const F32 variance = ((square[0] + square[1]) + (square[2] + square[3])) * inverse;
        const F32 scale = 1.0f / square_root(variance + 1e-5f);
        if (statistics) store(statistics + lane, mean), store(statistics + kPanel + lane, scale);
        for (int64_t c = 0; c < channels; c += kDepth<Word>) {
            F32 normed[kDepth<Word>] = {};
            for (int i = 0; i < kDepth<Word> && c + i < channels; ++i) {
                const F32 centred = load(from + (c + i) * kPanel + lane) - mean;
                normed[i] = madd(centred * scale, broadcast(weight[c + i]), broadcast(bias[c + i]));
            }
            store_depth(to + lane, kPanel, c, normed);
        }
    }
}

// Adds the gradient of x = `from` to `to`, from that of norm(x): with n = (x - mean) scale and e = weight grad,
// scale (e - mean(e) - n mean(e n)); and grad n and grad to sums [2][C][kLanes], the gradients of weight and bias.
static inline void norm_panel_backward(const float* grad, const float* from, int64_t channels, const float* weight,
                                       const float* statistics, float* to, float* sums) {
    const float inverse = 1.0f / static_cast<float>(channels);
    for (int lane = 0; lane < kPanel; lane += kLanes) {
        const F32 mean = load(statistics + lane), scale = load(statistics + kPanel + lane);
        F32 sum[2] = {}, along[2] = {};
        for (int64_t c = 0; c < channels; ++c) {
            const F32 value = load(grad + c * kPanel + lane);
            const F32 normed = (load(from + c * kPanel + lane) - mean) * scale;
            const F32 weighted = value * broadcast(weight[c]);
            sum[c & 1] += weighted;
            along[c & 1] = madd(weighted, normed, along[c & 1]);
            float *of_weight = sums + c * kLanes, *of_bias = sums + (channels + c) * kLanes;
            store(of_weight, madd(value, normed, load(of_weight)));
            store(of_bias, load(of_bias) + value);
        }
        const F32 mean_sum = (sum[0] + sum[1]) * inverse, mean_along = (along[0] + along[1]) * inverse;
        for (int64_t c = 0; c < channels; ++c) {
            const F32 normed = (load(from + c * kPanel + lane) - mean) * scale;
            const F32 weighted = load(grad + c * kPanel + lane) * broadcast(weight[c]);
            float* at = to + c * kPanel + lane;
            store(at, load(at) + scale * (weighted - mean_sum - normed * mean_along));
        }
    }
}

}  // namespace swk::SWK_ISA
