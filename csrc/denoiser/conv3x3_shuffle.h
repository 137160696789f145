// conv3x3_shuffle: out = PixelShuffle(2) of conv3x3(x) + bias if conv.shuffled, else conv3x3(x) + bias. conv.height,
// conv.width and conv.out_channels are those of the convolution's result. Convolution: conv3x3.h.
#pragma once

#include "conv3x3.h"

namespace swk {

struct Conv3x3ShuffleArgs {
    Conv3x3 conv;
};

}  // namespace swk
