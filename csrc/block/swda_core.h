// The part of swda_attention between its two 1x1 convolutions, and its gradient. The backward pass of training uses it.
//
//   qkv (B, 3C, H, W) -> dwconv3x3 inside each window -> window half, channel half -> attended (B, C, H, W)
//
// The input is a part of the rolled map made of whole windows, so nothing is rolled here. Formulas: swda_block.h. With
// P = softmax_one(l), D = 1 + sum exp(l - max), g the gradient of P and Delta_i = sum_j P_ij g_ij, softmax_one being a
// softmax with one more logit that equals the row's maximum and has the value 0:
//   dl_ij = P_ij (g_ij - Delta_i) - [l_ij is the maximum] Delta_i / D_i     (equal maxima share the last term)
//
// Multiply-accumulates per pixel: 27C + CN + Cd forward; 81C + 2.5CN + 2.5Cd backward, including the convolution and
// the logits, which it computes again.
// Memory: 4C elements per pixel forward, 7C backward (qkv and the gradient of attended read, that of qkv written).
#pragma once

#include "swda_block.h"

namespace swk {

struct SwdaCoreArgs {
    int64_t batch, channels, height, width;  // of `attended`; sides are multiples of the window
    int64_t heads, window, shift;            // the shift only decides where regions of the rolled map meet
    bool last_row, last_column;              // the part ends with the map's last row or column of windows
    ImageView qkv;                           // [B][3C][H][W], read
    AttentionWeights weights;                // only dwconv, dwconv_bias, scale and bias are read
    ImageView attended;                      // [B][C][H][W]: output of swda_core; swda_core_backward reads its gradient
    // Written by swda_core_backward only:
    ImageView grad_qkv;     // [B][3C][H][W]
    float* grad_dwconv;     // [window of the part][half][head][3d][10], 9 taps and bias; the caller sums over windows
    float* grad_bias;       // [window][head][(2w-1)^2], of the bias itself (16 sigmoid(table))
    float* grad_log_scale;  // [window][head], of min(logit_scale, ln 100)
    float* scratch;         // [threads][core_scratch_floats], 64-byte aligned
    int threads;            // at most this many are used
};

// Scratch floats for each thread of swda_core and swda_core_backward.
struct SwdaCoreLayoutArgs {
    int64_t channels, heads, window;
    int64_t* scratch_floats;
};

}  // namespace swk
