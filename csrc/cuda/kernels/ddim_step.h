// Which instance of ddim_step.cu serves; units are elements of a block.
#pragma once

#include "choice.h"

namespace swk::cuda {

constexpr int kDdimThreads = 128, kDdimElements = 8 * kDdimThreads;

inline Choice choose_ddim_step(bool bfloat16) {
    return {bfloat16 ? "ddim_step_bf16" : "ddim_step_f16", kDdimThreads, 0, kDdimElements};
}

}  // namespace swk::cuda
