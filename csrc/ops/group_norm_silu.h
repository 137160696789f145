// group_norm_silu: y = v sigmoid(v), v the norm's result (group_norm.h).
#pragma once

#include "group_norm.h"

namespace swk {

struct GroupNormSiluArgs {
    GroupNormInput input;
    float* out;                // overlaps no input
    PlaneStrides out_strides;  // planes like x, or rows like x
};

}  // namespace swk
