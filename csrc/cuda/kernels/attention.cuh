// The first kernel of swda_attention: everything before the projection. Block `unit`: windows of one group, one head,
// one half; the units of a window are neighbours, so that x is read from memory once.
#pragma once
#include "channel_half.cuh"
#include "window_half.cuh"

namespace swk::cuda {

template <class H>
GPU_FN void attention(const AttentionArgs& a) {
    const H unit(a, gpu::block());
    if (gpu::thread() < H::kZeros) unit.zeros[gpu::thread()] = 0;
    if (unit.half == 0) WindowHalf(unit).fill_table();
    unit.project();
    gpu::block_sync();  // q, k, v are whole
    typename H::Deep kept;
    unit.mix(kept);
    gpu::block_sync();  // what the halves need of them is whole
    typename H::Sums o;
    if (unit.half == 0) WindowHalf(unit).run(o, kept);
    else ChannelHalf(unit).run(o, kept);
    unit.write(o);
}

}  // namespace swk::cuda
