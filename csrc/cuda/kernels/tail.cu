// Instances of the tail of a block and of gated_ffn.
#include "tail.h"

#include "tail.cuh"

namespace swk::cuda {

template <class T, int kC, int kM, bool kProjects>
GPU_FN void tail(const TailArgs& a) {
    Tail<T, kC, kM, kProjects>(a).run();
}

template <int kC, int kM>
constexpr bool agrees() {
    using K = Tail<gpu::BFloat16, kC, kM, true>;
    constexpr Choice chosen = choose_tail(true, kC, true);
    return chosen.threads == K::kThreads && chosen.shared_bytes == K::kSharedBytes && chosen.units == K::kRows;
}
static_assert(agrees<24, 2>() && agrees<48, 2>() && agrees<96, 2>() && agrees<192, 1>());

}  // namespace swk::cuda

#define SWK_INSTANCES(c, m, blocks)                                                                                     \
    GPU_INSTANCE(tail_bf16_c##c, 256, blocks, swk::cuda::TailArgs, swk::cuda::tail<gpu::BFloat16, c, m, true>)            \
    GPU_INSTANCE(tail_f16_c##c, 256, blocks, swk::cuda::TailArgs, swk::cuda::tail<gpu::Float16, c, m, true>)              \
    GPU_INSTANCE(gated_ffn_bf16_c##c, 256, blocks, swk::cuda::TailArgs, swk::cuda::tail<gpu::BFloat16, c, m, false>)      \
    GPU_INSTANCE(gated_ffn_f16_c##c, 256, blocks, swk::cuda::TailArgs, swk::cuda::tail<gpu::Float16, c, m, false>)

SWK_INSTANCES(24, 2, 2)
SWK_INSTANCES(48, 2, 2)
SWK_INSTANCES(96, 2, 1)
SWK_INSTANCES(192, 1, 1)
