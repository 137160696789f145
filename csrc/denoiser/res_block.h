// res_block, a ResNet block: two norm_silu_conv3x3 in sequence and a skip connection:
//
//   hidden = conv3x3(silu(norm(x))) + bias + embedding
//   out    = conv3x3(silu(norm(hidden))) + bias + skip      skip = x, or x through a 1x1 convolution (the shortcut)
//
// Images in channels_last. `hidden`, and skip if there is a shortcut, are scratch.
#pragma once

#include "norm_silu_conv3x3.h"

namespace swk {

struct Shortcut {
    const float* weight;  // [panel of out channels][channel][panel width], zeros after out_channels; nullptr for none
    const float* bias;    // [out_channels], or nullptr
    float* scratch;       // [batch][pixels][out_channels]
};

struct ResBlockArgs {
    NormSiluConv3x3Args first;   // conv.out is hidden
    NormSiluConv3x3Args second;  // conv.x is hidden; conv.skip is x if there is no shortcut
    Shortcut shortcut;
};

}  // namespace swk
