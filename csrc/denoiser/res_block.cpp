// res_block on the CPU: what norm_silu_conv3x3 does, twice, and the shortcut's product between. The hidden image and the
// skip are 4 bytes for each pixel and channel in memory that the caller's thread keeps, 128 KB each for 32 channels of
// 32 x 32 pixels: they stay in L2. Written for small images, where a call from Python costs as much as a convolution.
#include "res_block.h"

#include "normed_conv3x3.h"
#include "pixels.h"

namespace swk::SWK_ISA {
namespace {

// The skip: x times the shortcut's weight, [batch][pixels][out_channels].
void shortcut_product(const ResBlockArgs& args) {
    const Conv3x3& first = args.first.conv;
    const int64_t pixels = first.height * first.width, out_channels = args.second.conv.out_channels;
    const int64_t groups = (pixels + kTileRows - 1) / kTileRows;
    const int64_t work = kTileRows * first.channels * out_channels / kLanes;  // multiply-adds of vectors
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
