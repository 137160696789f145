// res_block, a whole ResNet block, on the CPU, float32.
//
//   hidden = conv3x3(silu(norm(x))) + bias + embedding
//   out    = conv3x3(silu(norm(hidden))) + bias + skip      skip = x, or conv1x1(x) (the shortcut)
//
// Shapes: x (B, C, H, W), hidden (B, M, H, W), out (B, O, H, W). Memory layout: channels_last.
// MACs per pixel: 4 C M + 4 M O by Winograd (conv3x3.h), and C O for a shortcut.
// Bytes per pixel: 4 (2.3 C + 3.3 M + 2 O): each convolution reads its input 2.3 times (see norm_silu_conv3x3.cpp),
// hidden and out are written once, and skip is read once. A shortcut reads x once more and writes skip, 4 (C + O)
// bytes. hidden and skip are scratch of the calling thread, 128 KB each for 32 channels of 32x32 pixels, and stay in
// L2. The op exists for small images, where a call from Python costs as much as a convolution.
#include "res_block.h"

#include "normed_conv3x3.h"
#include "pixels.h"

namespace swk::SWK_ISA {
namespace {

// skip [batch][pixels][out_channels] = x times the weight of the shortcut.
void shortcut_product(const ResBlockArgs& args) {
    const Conv3x3& first = args.first.conv;
    const int64_t pixels = first.height * first.width, out_channels = args.second.conv.out_channels;
    const int64_t groups = (pixels + kTileRows - 1) / kTileRows;
    const int64_t work = kTileRows * first.channels * out_channels / kLanes;  // vector multiply-adds
    parallel_for(first.batch * groups, 1 + kGrain / (work + 1), 1, first.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / groups, pixel = i % groups * kTileRows, left = pixels - pixel;
            const float* from = first.x + b * first.x_strides.batch + pixel * first.x_strides.column;
            float* to = args.shortcut.scratch + (b * pixels + pixel) * out_channels;
            for (int64_t channel = 0; channel < out_channels; channel += kPanel) {
                const float* weight = args.shortcut.weight + channel * first.channels;
                store_pixels(multiply_pixels(from, first.x_strides.column, left, first.channels, weight), left, channel,
                             out_channels, args.shortcut.bias, to);
            }
        }
    });
}

}  // namespace

void res_block(const ResBlockArgs& args) {
    Conv3x3 last = args.second.conv;
    if (args.shortcut.weight) {
        shortcut_product(args);
        last.skip = args.shortcut.scratch;
        last.skip_strides = {last.height * last.width * last.out_channels, last.width * last.out_channels,
                             last.out_channels};
    }
    normed_convolution(args.first.norm, args.first.conv);
    normed_convolution(args.second.norm, last);
}

}  // namespace swk::SWK_ISA
