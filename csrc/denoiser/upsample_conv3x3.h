// upsample_conv3x3: out = conv3x3(x with every pixel as 2x2 equal ones) + bias; x has half of out's height and width,
// which are even. Product: conv3x3.h, with its points (0, 1, 3) x (0, 1, 3).
#pragma once

#include "conv3x3.h"

namespace swk {

struct UpsampleConv3x3Args {
    Conv3x3 conv;
};

}  // namespace swk
