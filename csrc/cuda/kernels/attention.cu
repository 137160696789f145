// Instances of swda_attention's first kernel: everything before the projection. Block `unit`: windows of one group, one head,
// one half; the units of a window are neighbours, so that x is read from memory once.
#include "attention.h"
#include "channel_half.cuh"
#include "window_half.cuh"

namespace swk::cuda {

template <class T, int kD, int kSide>
GPU_FN void attention(const AttentionArgs& a) {
    using H = Head<T, kD, kSide>;
    const H unit(a, gpu::block());
    if (gpu::thread() < H::kZeros) unit.zeros[gpu::thread()] = 0;
    if (unit.half == 0) WindowHalf<T, kD, kSide>(unit).fill_table();
    unit.project();
    gpu::block_sync();  // q, k, v are whole
    typename H::Deep kept;
    unit.mix(kept);
    gpu::block_sync();  // what the halves need of them is whole
    typename H::Sums o;
    if (unit.half == 0) WindowHalf<T, kD, kSide>(unit).run(o, kept);
    else ChannelHalf<T, kD, kSide>(unit).run(o, kept);
    unit.write(o);
}

template <int kD, int kSide>
constexpr bool agrees() {
    using H = Head<gpu::BFloat16, kD, kSide>;
    constexpr Choice chosen = choose_attention(true, kD, kSide);
    return chosen.threads == H::kThreads && chosen.shared_bytes == H::kSharedBytes && chosen.units == H::kWindows && H::kZeros <= H::kThreads;
}
static_assert(agrees<16, 8>() && agrees<16, 16>() && agrees<24, 8>() && agrees<24, 16>() && agrees<48, 8>() && agrees<48, 16>());

}  // namespace swk::cuda

#define SWK_INSTANCES(d, side, threads, blocks)                                                                               \
    GPU_INSTANCE(attention_bf16_d##d##_w##side, threads, blocks, swk::cuda::AttentionArgs, swk::cuda::attention<gpu::BFloat16, d, side>) \
    GPU_INSTANCE(attention_f16_d##d##_w##side, threads, blocks, swk::cuda::AttentionArgs, swk::cuda::attention<gpu::Float16, d, side>)

SWK_INSTANCES(16, 8, 256, 2)
SWK_INSTANCES(16, 16, 256, 2)
SWK_INSTANCES(24, 8, 256, 2)
SWK_INSTANCES(24, 16, 256, 2)
SWK_INSTANCES(48, 8, 512, 1)
SWK_INSTANCES(48, 16, 512, 1)
