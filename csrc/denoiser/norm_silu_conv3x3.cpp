// norm_silu_conv3x3 on the CPU: x is normed, goes through SiLU and Winograd's input transform as it is loaded, and bias,
// embedding and skip are added as the output is stored. 4 multiply-adds for each pixel and pair of channels, not 9;
// x is read 1.3 times beside the statistics, skip and out once, 4 bytes each.
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
