// Vectors of float32: the only file with vector types.
//
// Every op's source is compiled once per instruction set (CMakeLists.txt), each time with another SWK_ISA as namespace.
// Arithmetic, comparison and ?: come from the GCC/Clang vector extensions. Products are fused only where `madd` says so
// (the build sets -ffp-contract=off), so an element gets the same bits wherever it falls in a vector, a tail or a thread.
//
// Included by op sources only. They must not instantiate std templates: the linker keeps one copy of a template for all
// instruction sets, and it may be the one that this machine cannot run (tests/test_build.py looks for such symbols).
#pragma once

#include <cstdint>

#if !defined(SWK_PORTABLE) && (defined(__AVX2__) || defined(__AVX512F__))
#include <immintrin.h>
#elif !defined(SWK_PORTABLE) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace swk::SWK_ISA {

#if !defined(SWK_PORTABLE) && defined(__AVX512F__)
constexpr int kLanes = 16;
#elif !defined(SWK_PORTABLE) && defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2 is part of every x86-64, NEON of every 64-bit Arm
#endif

typedef float F32 __attribute__((vector_size(kLanes * sizeof(float))));

static inline F32 broadcast(float value) { return F32{} + value; }

static inline F32 load(const float* from) {
    F32 value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float* to, F32 value) { __builtin_memcpy(to, &value, sizeof value); }

// The first `count` lanes, the rest 0. `stride` in elements.
static inline F32 load(const float* from, int64_t stride, int count) {
    if (stride == 1 && count == kLanes) return load(from);
    float lanes[kLanes] = {};
    for (int lane = 0; lane < count; ++lane) lanes[lane] = from[lane * stride];
    return load(lanes);
}

static inline void store(float* to, int64_t stride, int count, F32 value) {
    if (stride == 1 && count == kLanes) return store(to, value);
    for (int lane = 0; lane < count; ++lane) to[lane * stride] = value[lane];
}

// a * b + c, rounded once where the instruction set can (everywhere but in the portable build).
static inline F32 madd(F32 a, F32 b, F32 c) {
#if !defined(SWK_PORTABLE) && defined(__AVX512F__)
    return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif !defined(SWK_PORTABLE) && defined(__AVX2__)
    return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif !defined(SWK_PORTABLE) && defined(__ARM_NEON)
    return (F32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// NaN stays NaN, as in torch.clamp: it fails both comparisons.
static inline F32 clamp(F32 value, F32 low, F32 high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

}  // namespace swk::SWK_ISA
