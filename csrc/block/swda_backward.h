// Gradients of swda_block and of its halves swda_attention and gated_ffn. Formulas of the forward pass: swda_block.h.
//
// With g the gradient of out, and y, u, a, h = (h1, h2) as in the forward pass, which is computed again:
//   u = qkv n1 + bias    a = core(u)    y = x + proj a    h = in n2 + bias    out = y + out(h1 h2)
//   FFN        dgate = out^T g   dh1 = dgate h2   dh2 = dgate h1   dn2 = in^T dh   dy = g + norm2'(dn2)
//   attention  da = proj^T dy    du = core'(da)                    dn1 = qkv^T du  dx = dy + norm1'(dn1)
//   weights    dout = g (h1 h2)^T   din = dh n2^T   dproj = dy a^T   dqkv = du n1^T, summed over all tokens
// norm' is the gradient of a LayerNorm; core' that of the part between the projections. With P = softmax_one(l),
// D = 1 + sum exp(l - max), gP the gradient of P and Delta_i = sum_j P_ij gP_ij, softmax_one being a softmax with one
// more logit that equals the row's maximum and has the value 0:
//   dl_ij = P_ij (gP_ij - Delta_i) - [l_ij is the maximum] Delta_i / D_i     (equal maxima share the last term)
//
// Multiply-accumulates per pixel: 3 (4 C^2 + 3 C hidden) for the projections (once to compute them again, twice for
// the gradients; less where weights need none), 81 C + 3 (C N + C d) for the core, and 27 C + (C N + C d) / 2 more where the
// heads of a window need too much memory to keep what their forward passes made (attention_backward.h).
// Memory: 12 C bytes per pixel (x and g read, dx written) and the sums of the weights' gradients: one set for each
// chunk of windows. Chunks depend on the shapes alone and are added in order, so the result does not depend on the
// number of threads.
#pragma once

#include "swda_block.h"

namespace swk {

// Transposed weights of 1x1 convolutions in tiles of tile_rows rows: [tile][column][row], zeros after the last row; for
// products of bfloat16 [tile][pair of columns][row]. The columns of `in` are paired in each half of hidden ones.
struct TransposedWeights {
    const float* qkv;   // rows: C; columns: for each (half, head), d of q, d of k, d of v
    const float* proj;  // rows: C of `attended`; columns: C
    const float* in;    // rows: C; columns: 2 hidden
    const float* out;   // rows: hidden; columns: C
};

// Gradients of the weights. nullptr where one is not wanted, or there is no such weight; norm, dwconv, bias and log_scale
// always exist. Rows of qkv are in the order of the released weights: half, (q, k, v), head, d.
struct AttentionGradients {
    float* norm;       // [2][C]: weight, bias
    float* qkv;        // [3C][C]
    float* qkv_bias;   // [3C]
    float* dwconv;     // [3C][10]: 9 taps and bias
    float* proj;       // [C][C]
    float* proj_bias;  // [C]
    float* bias;       // [heads][(2w-1)^2], of the position bias itself (16 sigmoid(table))
    float* log_scale;  // [heads], of min(logit_scale, ln 100)
};

struct FfnGradients {
    float* norm;      // [2][C]
    float* in;        // [2 hidden][C]
    float* in_bias;   // [2 hidden]
    float* out;       // [C][hidden]
    float* out_bias;  // [C]
};

// heads = 0: gated_ffn; hidden = 0: swda_attention.
struct SwdaBackwardArgs {
    SwdaBlockArgs forward;  // `out` receives dx; scratch as in SwdaBackwardLayoutArgs
    ImageView grad;
    TransposedWeights transposed;
    AttentionGradients attention;
    FfnGradients ffn;
    float* sums;     // scratch, [chunks][sums_floats of SwdaBackwardLayoutArgs]
    int64_t chunks;  // at least 1
};

struct SwdaBackwardLayoutArgs {
    int64_t channels, heads, window, hidden;
    bool bfloat16;            // as in SwdaBlockArgs
    int64_t* scratch_floats;  // for each thread
    int64_t* sums_floats;     // for each chunk
};

}  // namespace swk
