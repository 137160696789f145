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

    // `lanes` channels of a pixel of x; 0 outside the image.
    F32 pixel(const float* image, int64_t row, int64_t column, int lanes) const {
        if (row < 0 || row >= conv.height || column < 0 || column >= conv.width) return F32{};
        return load(image + row * conv.x_strides.row + column * conv.x_strides.column, 1, lanes);
    }

    void transform(const Block& block, int64_t slice, float* transformed) const {
        float* to_slice = transformed + slice * kBlockTiles * kSlice;
        for (int64_t c = 0; c < kSlice && slice * kSlice + c < conv.channels; c += kLanes) {
            const int64_t channel = slice * kSlice + c;
            const int lanes = left_lanes(conv.channels - channel);
            const float* image = conv.x + block.image * conv.x_strides.batch + channel;
            for (int tile = 0; tile < block.tiles(); ++tile) {
                const int64_t y = block.top + 2 * (tile / block.wide), x = block.left + 2 * (tile % block.wide);
                F32 d[4][4];
                for (int i = 0; i < 4; ++i) {
                    for (int j = 0; j < 4; ++j) d[i][j] = pixel(image, y + i - 1, x + j - 1, lanes);
                }
                store_transformed(d, point_floats(conv.channels), to_slice + tile * kSlice + c);
            }
        }
    }
};

}  // namespace

void conv3x3_shuffle(const Conv3x3ShuffleArgs& args) {
    const PlainSource source{args.conv};
    Winograd<PlainSource>(args.conv, source).run();
}

}  // namespace swk::SWK_ISA
