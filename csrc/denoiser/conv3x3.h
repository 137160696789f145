// A 3x3 convolution, stride 1, padded with one 0 on each side, of images in channels_last, by Winograd's F(2x2, 3x3)
// (Lavin and Gray 2016, arXiv 1509.09308). A tile of 2x2 outputs takes 16 multiplications per pair of channels instead
// of 36:
//
//   out tile = At [sum over channels (G w Gt) * (Bt d B)] A      d: 4x4 inputs, w: 3x3
//
//        1  0 -1  0          1    0    0
//   Bt = 0  1  1  0     G = 1/2  1/2  1/2     At = 1  1  1  0
//        0 -1  1  0         1/2 -1/2  1/2          0  1 -1 -1
//        0  1  0 -1          0    0    1
//
// In an image upsampled by nearest neighbour, the two middle rows of d are equal and so are the two middle columns. The
// third row and column of Bt d B are then 0, and 9 products remain.
//
// The rounding error is that of a sum of `channels` terms instead of 9 `channels`, times the growth of the transforms:
// 1.0 to 1.8 times the error of torch's direct convolution in NCHW and below that of torch's in channels_last.
// F(4x4, 3x3) would take 36 multiplications for 16 outputs instead of 64, with 6 to 11 times the error.
#pragma once

#include <cstdint>

namespace swk {

// A channels_last image in elements; the channel stride is 1.
struct RowStrides {
    int64_t batch, row, column;
};

struct Conv3x3 {
    int64_t batch, channels, height, width, out_channels;  // height and width of out
    const float* x;
    RowStrides x_strides;
    const float* weight;      // G w Gt, [panel of out channels][point][channel][panel width], zeros after out_channels
    const float* bias;        // [out_channels], or nullptr
    const float* embedding;   // [batch][out_channels], or nullptr
    const float* skip;        // like out, or nullptr
    RowStrides skip_strides;
    float* out;               // must not overlap an input
    RowStrides out_strides;
    bool shuffled;            // out is PixelShuffle(2) of the result: conv3x3_shuffle only
    float* scratch;           // [scratch_floats of Conv3x3LayoutArgs]
    int threads;              // at most this many are used
};

// Sizes that the caller needs to pack weights and allocate scratch for the instruction set in use.
struct Conv3x3LayoutArgs {
    int64_t batch, channels, height, width;
    int threads;
    int64_t* panel;           // width of a weight panel
    int64_t* scratch_floats;
};

}  // namespace swk
