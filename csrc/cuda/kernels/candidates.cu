// Instances that a GPU is still to be asked about (bench/gpu/candidates.py): other shares of a warp.
#include "attention.cuh"
#include "tail_wide.cuh"

namespace swk::cuda {
template <class Kernel>
GPU_FN void tail(const TailArgs& a) {
    Kernel(a).run();
}
}  // namespace swk::cuda

GPU_INSTANCE(attention_bf16_d24_w16_m1, 512, 2, swk::cuda::AttentionArgs,
             swk::cuda::attention<swk::cuda::Head<gpu::BFloat16, 24, 16, 1>>)
GPU_INSTANCE(attention_bf16_d16_w8_m1, 512, 2, swk::cuda::AttentionArgs,
             swk::cuda::attention<swk::cuda::Head<gpu::BFloat16, 16, 8, 1>>)
GPU_INSTANCE(attention_bf16_d48_w16_m2, 256, 1, swk::cuda::AttentionArgs,
             swk::cuda::attention<swk::cuda::Head<gpu::BFloat16, 48, 16, 2>>)
GPU_INSTANCE(tail_bf16_c192, 256, 1, swk::cuda::TailArgs, swk::cuda::tail<swk::cuda::Tail<gpu::BFloat16, 192, 1, true>>)
GPU_INSTANCE(tail_bf16_c192_r128, 256, 1, swk::cuda::TailArgs,
             swk::cuda::tail<swk::cuda::TailWide<gpu::BFloat16, 192, true, 2>>)
