// norm_silu_conv3x3: out = conv3x3(silu(norm(x))) + bias + embedding + skip. Norm: group_norm.h; product: conv3x3.h.
#pragma once

#include "conv3x3.h"
#include "group_norm.h"

namespace swk {

struct NormSiluConv3x3Args {
    GroupNormInput norm;  // the norm of conv.x
    Conv3x3 conv;
};

}  // namespace swk
