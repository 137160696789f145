// Instances of the tail of a block and of gated_ffn.
#include "tail.h"

#include "tail_wide.cuh"

namespace swk::cuda {

template <class Kernel>
GPU_FN void tail(const TailArgs& a) {
    Kernel(a).run();
}

template <class T, int kC, bool kProjects>
using Narrow = Tail<T, kC, kC == 32 || kC == 64 ? 1 : 2, kProjects>;
// kRows pixels of a block; three stages where one block fills a multiprocessor, two where two do.
constexpr int groups(int channels) { return channels < 256 ? 2 : 1; }
template <class T, int kC, bool kProjects, int kRows>
using Wide = TailWide<T, kC, kProjects, groups(kC), (kRows < 64 * groups(kC) ? 2 : 3), kRows / 16 / groups(kC)>;

template <int kC>
constexpr bool agrees() {
    using K = Narrow<gpu::BFloat16, kC, true>;
    constexpr Choice chosen = choose_tail(true, kC, true, 1, 1, K::kSharedBytes);
    return chosen.threads == K::kThreads && chosen.shared_bytes == K::kSharedBytes && chosen.units == K::kRows;
}
static_assert(agrees<24>() && agrees<32>() && agrees<48>() && agrees<64>() && agrees<96>());

template <int kC, int kRows>
constexpr bool agrees(const TailSize& size) {
    using K = Wide<gpu::BFloat16, kC, true, kRows>;
    return size.rows == K::kRows && size.shared_bytes == K::kSharedBytes && K::kThreads == 256;
}
static_assert(agrees<128, 64>(kTail128[0]) && agrees<128, 128>(kTail128[1]));
static_assert(agrees<192, 64>(kTail192[0]) && agrees<192, 160>(kTail192[1]));
static_assert(agrees<256, 32>(kTail256[0]) && agrees<256, 80>(kTail256[1]));
static_assert(agrees<384, 32>(kTail384[0]) && agrees<384, 64>(kTail384[1]) && agrees<384, 80>(kTail384[2]));

}  // namespace swk::cuda

#define SWK_INSTANCE(name, blocks, ...) \
    GPU_INSTANCE(name, 256, blocks, swk::cuda::TailArgs, swk::cuda::tail<swk::cuda::__VA_ARGS__>)
#define SWK_NARROW(c, blocks)                                                \
    SWK_INSTANCE(tail_bf16_c##c, blocks, Narrow<gpu::BFloat16, c, true>)      \
    SWK_INSTANCE(tail_f16_c##c, blocks, Narrow<gpu::Float16, c, true>)        \
    SWK_INSTANCE(gated_ffn_bf16_c##c, blocks, Narrow<gpu::BFloat16, c, false>) \
    SWK_INSTANCE(gated_ffn_f16_c##c, blocks, Narrow<gpu::Float16, c, false>)
#define SWK_WIDE(c, rows, blocks)                                                        \
    SWK_INSTANCE(tail_bf16_c##c##_r##rows, blocks, Wide<gpu::BFloat16, c, true, rows>)      \
    SWK_INSTANCE(tail_f16_c##c##_r##rows, blocks, Wide<gpu::Float16, c, true, rows>)        \
    SWK_INSTANCE(gated_ffn_bf16_c##c##_r##rows, blocks, Wide<gpu::BFloat16, c, false, rows>) \
    SWK_INSTANCE(gated_ffn_f16_c##c##_r##rows, blocks, Wide<gpu::Float16, c, false, rows>)

SWK_NARROW(24, 2)
SWK_NARROW(32, 2)
SWK_NARROW(48, 2)
SWK_NARROW(64, 2)
SWK_NARROW(96, 1)
SWK_WIDE(128, 64, 2)
SWK_WIDE(128, 128, 1)
SWK_WIDE(192, 64, 2)
SWK_WIDE(192, 160, 1)
SWK_WIDE(256, 32, 2)
SWK_WIDE(256, 80, 1)
SWK_WIDE(384, 32, 2)
SWK_WIDE(384, 64, 1)
SWK_WIDE(384, 80, 1)
