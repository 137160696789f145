// upsample_conv3x3 on the CPU, float32.
//
//   out = conv3x3(nearest(x)) + bias      nearest: upsampled by 2; convolution by Winograd with 9 points: conv3x3.h
//
// Shapes: x (B, C, H, W), out (B, O, 2H, 2W). Memory layout: channels_last; weights [panel][point][C][panel width].
// MACs per output pixel: 2.25 C O, 9 products per tile of 2x2 outputs, a quarter of the direct convolution.
// Bytes per output pixel: 4 (0.42 C + O). x, a quarter of the output's pixels, is read 1.7 times (blocks of 8x6 of its
// pixels read 10x8) and out written once. The upsampled image is never stored.
#include "upsample_conv3x3.h"

#include "winograd.h"

namespace swk::SWK_ISA {
namespace {

struct DoubledSource {
    static constexpr int kAxis = 3;

    const Conv3x3& conv;

    // Bt of (a, b, b, c) without its third element, which is 0.
    static void transform_three(F32& a, F32& b, F32& c) { a = a - b, c = b - c, b = b + b; }

    void transform(const Block& block, int64_t slice, float* transformed) const {
        each_tile<3, 2>(conv, block, slice, transformed, [&](F32 (&d)[3][3], float* to) {
            for (int j = 0; j < 3; ++j) transform_three(d[0][j], d[1][j], d[2][j]);
            for (int i = 0; i < 3; ++i) transform_three(d[i][0], d[i][1], d[i][2]);
            for (int point = 0; point < 9; ++point) {
                store(to + point * point_floats(conv.channels), d[point / 3][point % 3]);
            }
        });
    }
};

}  // namespace

void upsample_conv3x3(const UpsampleConv3x3Args& args) {
    const DoubledSource source{args.conv};
    Winograd<DoubledSource>(args.conv, source).run();
}

}  // namespace swk::SWK_ISA
