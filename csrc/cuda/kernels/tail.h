// Which instances of tail.cu serve: a block's second half, and gated_ffn alone. Units: pixels of one block.
#pragma once

#include "choice.h"

namespace swk::cuda {

// projects: with projection and residual before the FFN; x is an image and the input in windows then. Shared memory: two
// stages of weights (tail.cuh, which agrees); for 384 channels the pixels and three stages (tail_wide.cuh).
constexpr Choice choose_tail(bool bfloat16, int channels, bool projects) {
#define SWK_TAIL(c, bytes, units)                                                                            \
    if (channels == c)                                                                                       \
        return {projects ? (bfloat16 ? "tail_bf16_c" #c : "tail_f16_c" #c)                                   \
                         : (bfloat16 ? "gated_ffn_bf16_c" #c : "gated_ffn_f16_c" #c),                        \
                256, bytes, units};
    SWK_TAIL(24, 9984, 256)
    SWK_TAIL(48, 22016, 256)
    SWK_TAIL(96, 41984, 256)
    SWK_TAIL(192, 81920, 128)
    SWK_TAIL(384, 163840, 64)
#undef SWK_TAIL
    return {};
}

}  // namespace swk::cuda
