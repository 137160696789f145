// Compiled for AVX512_BF16; peak.cpp asks the CPU before it calls. No std templates here, as in simd.h.
#include <immintrin.h>

#include "../base/fma_loop.h"

namespace swk {

// 24 chains, as in fma_loop.cpp. vdpbf16ps adds two products to each of 16 sums.
void bfloat16_loop(const FmaLoopArgs& args) {
    constexpr int kChains = 24;
    const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(args.factor), _mm512_set1_ps(args.factor));
    const __m512bh addend = _mm512_cvtne2ps_pbh(_mm512_set1_ps(args.addend), _mm512_set1_ps(args.addend));
    __m512 chain[kChains];
    for (int i = 0; i < kChains; ++i) chain[i] = _mm512_set1_ps(static_cast<float>(i));
    for (int64_t round = 0; round < args.rounds; ++round) {
#pragma GCC unroll 24
        for (int i = 0; i < kChains; ++i) chain[i] = _mm512_dpbf16_ps(chain[i], factor, addend);
    }
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < kChains; ++i) sum = _mm512_add_ps(sum, chain[i]);
    *args.result = _mm512_cvtss_f32(sum);
    *args.operations = 2 * 2 * 16 * kChains;
}

}  // namespace swk
