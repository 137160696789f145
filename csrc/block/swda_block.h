// swda_block and its halves swda_attention and gated_ffn (arXiv 2401.05907), on x (B, C, H, W):
//
//   y   = x + proj(concat(window half, channel half)) of norm1(x)      swda_attention
//   out = y + out(x1 * x2), [x1, x2] = in(norm2(y))                    gated_ffn
//
// For each w*w window of the map rolled by (-s, -s), N = w*w tokens, d = C / 2 / heads:
//   qkv = dwconv3x3(1x1 conv), zero-padded inside the window; half, part (q, k, v) and head split its 3C channels
//   window half   softmax_one(exp(min(logit_scale, ln 100)) cos(q_i, k_j) + bias[i - j] + mask_ij) v over the N tokens
//   channel half  softmax_one(cos(q_a, k_b)) v over the d channels, norms over the N tokens
//   softmax_one(l) = exp(l - max) / (1 + sum exp(l - max)); mask is -100 between different regions of the rolled map.
//
// Multiply-accumulates per pixel: 3C^2 + 27C + CN + Cd + C^2 (attention), 3 C hidden (FFN).
// Memory: 8 C bytes per pixel, x read once and out written once; intermediate results stay in scratch.
#pragma once

#include <cstdint>

namespace swk {

// A (B, C, H, W) tensor of float32 or bfloat16 with any strides, in elements.
struct ImageView {
    float* data;
    int64_t batch_stride, channel_stride, row_stride, column_stride;
    bool bfloat16 = false;  // the elements at `data`
};

// Weights of a 1x1 convolution in tiles of tile_rows (SwdaLayoutArgs) output channels: [tile][input channel][row],
// zeros in the rows after the last output channel. `bias` is [tile][row], zeros if the convolution has none.
// For products of bfloat16, a word of `weight` holds two input channels (Pair in base/simd.h): [tile][pair][row].
struct TiledMatrix {
    const float* weight;
    const float* bias;
};

struct AttentionWeights {
    const float* norm_weight;  // [C]
    const float* norm_bias;    // [C]
    // Separate tiles for each (half, head), window half first; output channels: d of q, d of k, d of v.
    TiledMatrix qkv;
    const float* dwconv;       // [row of qkv's tiles][9], row-major taps
    const float* dwconv_bias;  // [row of qkv's tiles]
    TiledMatrix proj;          // input channels: window half (head-major), channel half
    const float* scale;        // [heads] exp(min(logit_scale, ln 100))
    const float* bias;         // [heads][bias_floats], see SwdaLayoutArgs::bias_index
};

struct FfnWeights {
    const float* norm_weight;  // [C]
    const float* norm_bias;    // [C]
    // A tile holds tile_rows / 2 channels of x1, then the same channels of x2; zeros after the last channel.
    TiledMatrix in;
    TiledMatrix out;
    int64_t hidden;
};

// swda_attention does not read `ffn`; gated_ffn does not read `attention`, heads, window and shift.
struct SwdaBlockArgs {
    int64_t batch, channels, height, width;  // sides are multiples of the window, except for gated_ffn
    int64_t heads, window, shift;            // 2 heads divide the channels; 0 <= shift < window
    ImageView x, out;                        // must not overlap
    // Products multiply bfloat16, and the weights are packed for them: qkv, proj, in, out and those of the attention.
    // All sums, norms, residuals, the softmax and the depth-wise convolution stay float32.
    bool bfloat16;
    AttentionWeights attention;
    FfnWeights ffn;
    float* scratch;  // [threads][scratch_floats], 64-byte aligned
    int threads;     // at most this many are used
};

// Sizes that the caller needs to pack weights and allocate scratch for the instruction set in use.
struct SwdaLayoutArgs {
    int64_t channels, heads, window, hidden;  // heads = 0 for gated_ffn, hidden = 0 for swda_attention
    int64_t* tile_rows;                       // even
    int64_t* scratch_floats;                  // for each thread
    int64_t* bias_floats;                     // for each head, 0 without attention
    // [bias_floats]: index into the (2w-1)^2 bias table for each element of the packed bias; nullptr if not wanted.
    int64_t* bias_index;
};

}  // namespace swk
