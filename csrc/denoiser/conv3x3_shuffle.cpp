// conv3x3_shuffle on the CPU, float32.
//
//   out = PixelShuffle(conv3x3(x) + bias)      convolution by Winograd: conv3x3.h
//
// Shapes: x (B, C, H, W), out (B, O / s^2, s H, s W) with s = 1 or 2. Memory layout: channels_last; weights
// [panel][point][C][panel width].
// MACs per pixel of x: 4 C O by Winograd instead of 9 C O, plus its transforms.
// Bytes per pixel of x: 4 (1.3 C + O). x is read 1.3 times (blocks of 16x12 pixels read 18x14) and out written once; the
// image before the shuffle is never stored.
#include "conv3x3_shuffle.h"

#include "winograd.h"

namespace swk::SWK_ISA {
namespace {

struct PlainSource {
    static constexpr int kAxis = 4;

    const Conv3x3& conv;

    void transform(const Block& block, int64_t slice, float* transformed) const {
        each_tile<4, 1>(conv, block, slice, transformed, [&](F32 (&d)[4][4], float* to) {
            store_transformed(d, point_floats(conv.channels), to);
        });
    }
};

}  // namespace

void conv3x3_shuffle(const Conv3x3ShuffleArgs& args) {
    const PlainSource source{args.conv};
    Winograd<PlainSource>(args.conv, source).run();
}

}  // namespace swk::SWK_ISA
