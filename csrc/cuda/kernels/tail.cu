// Instances of the tail of a block and of gated_ffn.
#include "tail.h"

#include "tail_wide.cuh"

namespace swk::cuda {

template <class Kernel>
GPU_FN void tail(const TailArgs& a) {
    Kernel(a).run();
}

template <int kC, class K>
constexpr bool agrees() {
    constexpr Choice chosen = choose_tail(true, kC, true);
    return chosen.threads == K::kThreads && chosen.shared_bytes == K::kSharedBytes && chosen.units == K::kRows;
}
template <int kC, int kM>
using Narrow = Tail<gpu::BFloat16, kC, kM, true>;
static_assert(agrees<24, Narrow<24, 2>>() && agrees<48, Narrow<48, 2>>() && agrees<96, Narrow<96, 2>>());
static_assert(agrees<192, Narrow<192, 1>>() && agrees<384, TailWide<gpu::BFloat16, 384, true>>());

}  // namespace swk::cuda

#define SWK_INSTANCE(name, blocks, ...) GPU_INSTANCE(name, 256, blocks, swk::cuda::TailArgs, swk::cuda::tail<swk::cuda::__VA_ARGS__>)
#define SWK_INSTANCES(c, m, blocks)                                                  \
    SWK_INSTANCE(tail_bf16_c##c, blocks, Tail<gpu::BFloat16, c, m, true>)            \
    SWK_INSTANCE(tail_f16_c##c, blocks, Tail<gpu::Float16, c, m, true>)              \
    SWK_INSTANCE(gated_ffn_bf16_c##c, blocks, Tail<gpu::BFloat16, c, m, false>)      \
    SWK_INSTANCE(gated_ffn_f16_c##c, blocks, Tail<gpu::Float16, c, m, false>)

SWK_INSTANCES(24, 2, 2)
SWK_INSTANCES(48, 2, 2)
SWK_INSTANCES(96, 2, 1)
SWK_INSTANCES(192, 1, 1)
SWK_INSTANCE(tail_bf16_c384, 1, TailWide<gpu::BFloat16, 384, true>)
SWK_INSTANCE(tail_f16_c384, 1, TailWide<gpu::Float16, 384, true>)
SWK_INSTANCE(gated_ffn_bf16_c384, 1, TailWide<gpu::BFloat16, 384, false>)
SWK_INSTANCE(gated_ffn_f16_c384, 1, TailWide<gpu::Float16, 384, false>)
