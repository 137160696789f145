// upsample_conv3x3 on the CPU: 9 products for a tile of 2x2 outputs, a quarter of the direct convolution's 36; the
// doubled image is never made. x is read 1.7 times, out written once, 4 bytes each.
#include "upsample_conv3x3.h"

#include "winograd.h"

namespace swk::SWK_ISA {
namespace {

struct DoubledSource {
    static constexpr int kAxis = 3;

    const Conv3x3& conv;

    // Bt of (a, b, b, c) without its third number, which is 0.
    static void transform_three(F32& a, F32& b, F32& c) { a = a - b, c = b - c, b = b + b; }

    // kLanes channels (or `lanes`) of the pixel under tile (row, column) of the image; 0 outside.
    F32 pixel(const float* image, int64_t row, int64_t column, int lanes) const {
        if (row < 0 || 2 * row >= conv.height || column < 0 || 2 * column >= conv.width) return F32{};
        return load(image + row * conv.x_strides.row + column * conv.x_strides.column, 1, lanes);
    }

    void transform(const Block& block, int64_t slice, float* transformed) const {
        float* to_slice = transformed + slice * kBlockTiles * kSlice;
        for (int64_t c = 0; c < kSlice && slice * kSlice + c < conv.channels; c += kLanes) {
            const int64_t channel = slice * kSlice + c;
            const int lanes = left_lanes(conv.channels - channel);
            const float* image = conv.x + block.image * conv.x_strides.batch + channel;
            for (int tile = 0; tile < block.tiles(); ++tile) {
                const int64_t y = block.top / 2 + tile / block.wide, x = block.left / 2 + tile % block.wide;
                F32 d[3][3];
                for (int i = 0; i < 3; ++i) {
                    for (int j = 0; j < 3; ++j) d[i][j] = pixel(image, y + i - 1, x + j - 1, lanes);
                }
                for (int j = 0; j < 3; ++j) transform_three(d[0][j], d[1][j], d[2][j]);
                for (int i = 0; i < 3; ++i) transform_three(d[i][0], d[i][1], d[i][2]);
                float* to = to_slice + tile * kSlice + c;
                for (int point = 0; point < 9; ++point) {
                    store(to + point * point_floats(conv.channels), d[point / 3][point % 3]);
                }
            }
        }
    }
};

}  // namespace

void upsample_conv3x3(const UpsampleConv3x3Args& args) {
    const DoubledSource source{args.conv};
    Winograd<DoubledSource>(args.conv, source).run();
}

}  // namespace swk::SWK_ISA
