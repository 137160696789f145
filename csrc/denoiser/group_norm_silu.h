// group_norm_silu: y = v sigmoid(v), where v is the result of the norm (group_norm.h), and its gradients. With s =
// sigmoid(v), n = (x - mean) / deviation, gain = weight (1 + scale), and means over a group's elements:
//
//   dv = dy s (1 + v (1 - s))
//   dx = (gain dv - mean(gain dv) - n mean(gain dv n)) / deviation        (Wu and He 2018, differentiated)
//
// The gradients of weight, bias, scale and shift follow from the sums of dv and dv n over an image's channel.
#pragma once

#include "group_norm.h"

namespace swk {

struct GroupNormSiluArgs {
    GroupNormInput input;
    float* out;                // must not overlap an input
    PlaneStrides out_strides;  // planes like x, or rows like x
};

struct GroupNormSiluBackwardArgs {
    GroupNormInput input;
    const float* grad;         // of y; may be grad_x
    PlaneStrides grad_strides;
    float* grad_x;             // must not overlap another input
    PlaneStrides grad_x_strides;  // all three in planes, or all in rows
    float* sums;               // [batch][of dv, of dv n][channels]
    float* scratch;            // [group_norm_silu_backward_scratch], in addition to input.scratch
};

// Floats of scratch, enough for both layouts: two sums per chunk of a channel, or two numbers per channel.
constexpr int64_t group_norm_silu_backward_scratch(int64_t batch, int64_t channels, int64_t pixels) {
    return 2 * batch * channels * ((pixels + kChunkFloats - 1) / kChunkFloats);
}

}  // namespace swk
