// upsample_conv3x3: out = conv3x3(x upsampled by 2, nearest neighbour) + bias. conv.height and conv.width are those of
// out and even. Convolution: conv3x3.h with the points (0, 1, 3) x (0, 1, 3).
#pragma once

#include "conv3x3.h"

namespace swk {

struct UpsampleConv3x3Args {
    Conv3x3 conv;
};

}  // namespace swk
