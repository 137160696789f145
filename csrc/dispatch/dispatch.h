// The table of all ops, and which instruction set's build of them this machine gets. That is decided once;
// SWINTORMER_ISA=portable|avx2|avx512|avx512bf16|neon forces one.
#pragma once

#include <string>
#include <vector>

#include "../base/fma_loop.h"
#include "../block/swda_backward.h"
#include "../block/swda_block.h"
#include "../denoiser/conv3x3_shuffle.h"
#include "../denoiser/ddim_step.h"
#include "../denoiser/group_norm_silu.h"
#include "../denoiser/norm_projection.h"
#include "../denoiser/norm_silu_conv3x3.h"
#include "../denoiser/res_block.h"
#include "../denoiser/upsample_conv3x3.h"

// Every op: its name and its argument struct. The function is compiled once per instruction set; those with products of
// bfloat16 once more for AVX512_BF16.
#define SWK_FOR_EACH_BFLOAT16_OP(X)           \
    X(gated_ffn, SwdaBlockArgs)               \
    X(swda_attention, SwdaBlockArgs)          \
    X(swda_backward, SwdaBackwardArgs)        \
    X(swda_backward_layout, SwdaBackwardLayoutArgs) \
    X(swda_block, SwdaBlockArgs)              \
    X(swda_layout, SwdaLayoutArgs)

#define SWK_FOR_EACH_FLOAT32_OP(X)            \
    X(conv3x3_layout, Conv3x3LayoutArgs)      \
    X(conv3x3_shuffle, Conv3x3ShuffleArgs)    \
    X(ddim_step, DdimStepArgs)                \
    X(fma_loop, FmaLoopArgs)                  \
    X(group_norm_silu, GroupNormSiluArgs)     \
    X(group_norm_silu_backward, GroupNormSiluBackwardArgs) \
    X(norm_projection, NormProjectionArgs)    \
    X(norm_silu_conv3x3, NormSiluConv3x3Args) \
    X(res_block, ResBlockArgs)                \
    X(upsample_conv3x3, UpsampleConv3x3Args)

#define SWK_FOR_EACH_OP(X) SWK_FOR_EACH_BFLOAT16_OP(X) SWK_FOR_EACH_FLOAT32_OP(X)

namespace swk {

struct Kernels {
    const char* isa;
    bool bfloat16;  // whether its products of bfloat16 are instructions of the CPU; else they are emulated, for tests
#define SWK_MEMBER(op, Args) void (*op)(const Args&);
    SWK_FOR_EACH_OP(SWK_MEMBER)
#undef SWK_MEMBER
};

// The kernels in use. Throws std::invalid_argument if this machine cannot run what SWINTORMER_ISA names.
const Kernels& kernels();

// Uses the kernels of instruction set `isa` from now on. Throws std::invalid_argument as above. For tests and benches.
void use_isa(const std::string& isa);

// Instruction sets that are compiled in and that this machine can run, in order of preference.
std::vector<std::string> supported_isas();

}  // namespace swk
