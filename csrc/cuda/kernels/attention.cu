// Instances of the first kernel of swda_attention.
#include "attention.cuh"

#include "attention.h"

namespace swk::cuda {

template <int kD, int kSide>
constexpr bool agrees() {
    using H = Head<gpu::BFloat16, kD, kSide>;
    constexpr Choice chosen = choose_attention(true, kD, kSide);
    return chosen.threads == H::kThreads && chosen.shared_bytes == H::kSharedBytes && chosen.units == H::kWindows &&
           H::kZeros <= H::kThreads;
}
static_assert(agrees<16, 8>() && agrees<16, 16>() && agrees<24, 8>() && agrees<24, 16>() && agrees<32, 8>() &&
              agrees<32, 16>() && agrees<48, 8>() && agrees<48, 16>());

}  // namespace swk::cuda

#define SWK_INSTANCES(d, side, threads, blocks)                                            \
    GPU_INSTANCE(attention_bf16_d##d##_w##side, threads, blocks, swk::cuda::AttentionArgs, \
                 swk::cuda::attention<swk::cuda::Head<gpu::BFloat16, d, side>>)            \
    GPU_INSTANCE(attention_f16_d##d##_w##side, threads, blocks, swk::cuda::AttentionArgs,  \
                 swk::cuda::attention<swk::cuda::Head<gpu::Float16, d, side>>)

SWK_INSTANCES(16, 8, 256, 2)
SWK_INSTANCES(16, 16, 256, 2)
SWK_INSTANCES(24, 8, 256, 2)
SWK_INSTANCES(24, 16, 256, 2)
SWK_INSTANCES(32, 8, 512, 1)
SWK_INSTANCES(32, 16, 512, 1)
SWK_INSTANCES(48, 8, 512, 1)
SWK_INSTANCES(48, 16, 512, 1)
