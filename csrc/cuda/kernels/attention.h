// Which instances of attention.cu serve. Units: windows of one block; blocks = ceil(windows / units) * heads * 2.
#pragma once

#include "choice.h"

namespace swk::cuda {

// head_channels: 12 (padded to 16 in the packed weights), 16, 24, 32 or 48; side of a window: 8 or 16. Shared memory:
// rows of q, k and v, a row of zeros, and the bias table or sums of squares (head.cuh, which agrees).
constexpr Choice choose_attention(bool bfloat16, int head_channels, int side) {
    if (side != 8 && side != 16) return {};
    const int units = side == 8 ? 4 : 1;
    switch (head_channels) {
        case 12:
        case 16:
            if (side == 8) return {bfloat16 ? "attention_bf16_d16_w8" : "attention_f16_d16_w8", 256, 30432, units};
            return {bfloat16 ? "attention_bf16_d16_w16" : "attention_f16_d16_w16", 256, 32752, units};
        case 24:
            if (side == 8) return {bfloat16 ? "attention_bf16_d24_w8" : "attention_f16_d24_w8", 256, 39440, units};
            return {bfloat16 ? "attention_bf16_d24_w16" : "attention_f16_d24_w16", 256, 40992, units};
        case 32:
            if (side == 8) return {bfloat16 ? "attention_bf16_d32_w8" : "attention_f16_d32_w8", 512, 58688, units};
            return {bfloat16 ? "attention_bf16_d32_w16" : "attention_f16_d32_w16", 512, 57920, units};
        case 48:
            if (side == 8) return {bfloat16 ? "attention_bf16_d48_w8" : "attention_f16_d48_w8", 512, 85920, units};
            return {bfloat16 ? "attention_bf16_d48_w16" : "attention_f16_d48_w16", 512, 84768, units};
        default: return {};
    }
}

}  // namespace swk::cuda
