// norm_silu_conv3x3 on the CPU, float32.
//
//   out = conv3x3(silu(norm(x))) + bias + embedding + skip      norm: group_norm.h; convolution by Winograd: conv3x3.h
//
// Shapes: x (B, C, H, W); out and skip (B, O, H, W). Memory layout: channels_last; weights [panel][point][C][panel
// width].
// MACs per pixel: 4 C O by Winograd instead of 9 C O, plus its transforms.
// Bytes per pixel: 4 (2.3 C + 2 O). x is read once for the statistics and 1.3 times for the convolution (blocks of
// 16x12 outputs read 18x14 inputs); skip is read once and out written once.
// Norm, SiLU and Winograd's input transform are applied while x is loaded; bias, embedding and skip are added while the
// output is stored.
#include "norm_silu_conv3x3.h"

#include "normed_conv3x3.h"

namespace swk::SWK_ISA {

void conv3x3_layout(const Conv3x3LayoutArgs& args) {
    const int64_t blocks = args.batch * BlockGrid(args.height, args.width).blocks();
    *args.panel = kPanel;
    *args.scratch_floats =
        transformed_at_once(blocks, args.threads) * kMostPoints * point_floats(args.channels) +
        args.threads * kProductFloats;
}

void norm_silu_conv3x3(const NormSiluConv3x3Args& args) {
    normed_convolution(args.norm, args.conv);
}

}  // namespace swk::SWK_ISA
