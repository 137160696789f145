// Vectors of float32, and of pairs of bfloat16 (at the end). Only this file uses vector types of an instruction set.
//
// The source of every op is compiled once per instruction set (CMakeLists.txt), each time with another namespace
// SWK_ISA. Arithmetic, comparison and ?: are GCC/Clang vector extensions. Only `madd` fuses products and sums (the
// build sets -ffp-contract=off), so an element has the same bits at any position in a vector, in a tail and on any
// thread.
//
// For op sources only. They must not instantiate std templates: the linker keeps one copy of a template for all
// instruction sets, which may be one that this machine cannot run (tests/native/test_build.py checks the symbols).
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
typedef int32_t I32 __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t U32 __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t U16 __attribute__((vector_size(kLanes * sizeof(uint16_t))));

template <int... Lane>
struct LaneList {};
#if !defined(SWK_PORTABLE) && defined(__AVX512F__)
using Lanes = LaneList<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif !defined(SWK_PORTABLE) && defined(__AVX2__)
using Lanes = LaneList<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using Lanes = LaneList<0, 1, 2, 3>;
#endif

// value - 0 has the bits of value, so the compiler removes the subtraction; 0 + value would change -0 to +0.
static inline F32 broadcast(float value) { return value - F32{}; }

static inline F32 load(const float* from) {
    F32 value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float* to, F32 value) { __builtin_memcpy(to, &value, sizeof value); }

typedef float HalfF32 __attribute__((vector_size(kLanes / 2 * sizeof(float))));

template <int... Lane>
static inline F32 load_halves(const float* low, const float* high, LaneList<Lane...>) {
    HalfF32 a, b;
    __builtin_memcpy(&a, low, sizeof a);
    __builtin_memcpy(&b, high, sizeof b);
    return __builtin_shufflevector(a, b, Lane...);
}

// The lower and the upper kLanes / 2 lanes from two places.
static inline F32 load_halves(const float* low, const float* high) { return load_halves(low, high, Lanes{}); }

template <int... Lane>
static inline void store_halves(float* low, float* high, F32 value, LaneList<Lane...>) {
    // Both halves are the low half of a vector, so that each store is one instruction.
    const F32 upper = __builtin_shufflevector(value, value, (Lane ^ kLanes / 2)...);
    __builtin_memcpy(low, &value, sizeof value / 2);
    __builtin_memcpy(high, &upper, sizeof value / 2);
}

static inline void store_halves(float* low, float* high, F32 value) { store_halves(low, high, value, Lanes{}); }

// The lower kLanes / 2 lanes alone; the upper ones of what is loaded are 0.
static inline F32 load_low(const float* from) {
    F32 value = {};
    __builtin_memcpy(&value, from, sizeof value / 2);
    return value;
}

static inline void store_low(float* to, F32 value) { __builtin_memcpy(to, &value, sizeof value / 2); }

// Number of lanes in use if `left` elements remain.
static inline int left_lanes(int64_t left) { return left < kLanes ? static_cast<int>(left) : kLanes; }

// Loads the first `count` lanes and sets the rest to 0. `stride` in elements.
static inline F32 load(const float* from, int64_t stride, int count) {
    if (stride == 1 && count == kLanes) return load(from);
#if !defined(SWK_PORTABLE) && defined(__AVX512F__)
    if (stride == 1) return (F32)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#endif
    float lanes[kLanes] = {};
    for (int lane = 0; lane < count; ++lane) lanes[lane] = from[lane * stride];
    return load(lanes);
}

static inline void store(float* to, int64_t stride, int count, F32 value) {
    if (stride == 1 && count == kLanes) return store(to, value);
#if !defined(SWK_PORTABLE) && defined(__AVX512F__)
    if (stride == 1) return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
#endif
    for (int lane = 0; lane < count; ++lane) to[lane * stride] = value[lane];
}

// a * b + c, rounded once (twice in the portable build).
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

// a where a > b, otherwise b, as the x86 instruction; b if one of them is NaN.
static inline F32 maximum(F32 a, F32 b) {
#if !defined(SWK_PORTABLE) && defined(__AVX512F__)
    return (F32)_mm512_max_ps((__m512)a, (__m512)b);
#elif !defined(SWK_PORTABLE) && defined(__AVX2__)
    return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// Correctly rounded.
static inline F32 square_root(F32 value) {
#if !defined(SWK_PORTABLE) && defined(__AVX512F__)
    return (F32)_mm512_sqrt_ps((__m512)value);
#elif !defined(SWK_PORTABLE) && defined(__AVX2__)
    return (F32)_mm256_sqrt_ps((__m256)value);
#elif !defined(SWK_PORTABLE) && defined(__ARM_NEON)
    return (F32)vsqrtq_f32((float32x4_t)value);
#else
    for (int lane = 0; lane < kLanes; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
    return value;
#endif
}

// e^value for value <= 88. Below -87.3, where float32 becomes subnormal, the result is e^-87.3 = 1.2e-38.
// Error at most 1.26 units in the last place, measured on every 37th float from -87.3 to 0 on each instruction set.
// Cody and Waite: value = n ln 2 + r with |r| <= ln 2 / 2, with ln 2 split in two so that n times its head is exact.
// The polynomial is that of expf in Cephes. 2^n is assembled from the bits of n.
static inline F32 exponential(F32 value) {
    value = maximum(broadcast(-87.33654f), value);  // NaN stays NaN
    const F32 shifter = broadcast(12582912.0f);  // 1.5 * 2^23: after adding it, the lowest bits hold the nearest integer
    const F32 shifted = madd(value, broadcast(1.44269504088896341f), shifter);
    const F32 n = shifted - shifter;
    F32 r = madd(n, broadcast(-0.693359375f), value);
    r = madd(n, broadcast(2.12194440e-4f), r);
    F32 p = broadcast(1.9875691500e-4f);
    p = madd(p, r, broadcast(1.3981999507e-3f));
    p = madd(p, r, broadcast(8.3334519073e-3f));
    p = madd(p, r, broadcast(4.1665795894e-2f));
    p = madd(p, r, broadcast(1.6666665459e-1f));
    p = madd(p, r, broadcast(5.0000001201e-1f));
    p = madd(p, r * r, r + 1.0f);
    const I32 power = ((I32)shifted - (I32)shifter + 127) << 23;
    return p * (F32)power;
}

// Swaps rows[i][j] and rows[j][i] by exchanging off-diagonal blocks of increasing size.
template <int Step, int... Lane>
static inline void transpose_step(F32* rows, LaneList<Lane...>) {
    for (int i = 0; i < kLanes; ++i) {
        if (i & Step) continue;
        const F32 a = rows[i], b = rows[i + Step];
        rows[i] = __builtin_shufflevector(a, b, (Lane & Step ? kLanes + Lane - Step : Lane)...);
        rows[i + Step] = __builtin_shufflevector(a, b, (Lane & Step ? kLanes + Lane : Lane + Step)...);
    }
}

static inline void transpose(F32 (&rows)[kLanes]) {
    transpose_step<1>(rows, Lanes{});
    transpose_step<2>(rows, Lanes{});
    if constexpr (kLanes >= 8) transpose_step<4 % kLanes>(rows, Lanes{});
    if constexpr (kLanes >= 16) transpose_step<8 % kLanes>(rows, Lanes{});
}

// The lanes from `first` on, moved to the front.
static inline F32 lanes_from(F32 value, int first) {
    float lanes[2 * kLanes] = {};
    store(lanes, value);
    return load(lanes + first);
}

template <int Half, int... Lane>
static inline F32 fold(F32 value, LaneList<Lane...>) {
    return value + __builtin_shufflevector(value, value, (Lane ^ Half)...);
}

// Halves are added to each other until one number is left.
static inline float sum_of_lanes(F32 value) {
    if constexpr (kLanes >= 16) value = fold<8 % kLanes>(value, Lanes{});
    if constexpr (kLanes >= 8) value = fold<4 % kLanes>(value, Lanes{});
    return fold<1>(fold<2>(value, Lanes{}), Lanes{})[0];
}

// The upper half of `low`, then the lower half of `high`.
template <int... Lane>
static inline F32 middle(F32 low, F32 high, LaneList<Lane...>) {
    return __builtin_shufflevector(low, high, (Lane + kLanes / 2)...);
}

// Vectors of whole rows of `Row` elements: element i takes the place of element i + Step of its row. 0 comes in.
template <int Row, int Step, int... Lane>
static inline F32 moved(F32 value, LaneList<Lane...>) {
    return __builtin_shufflevector(
        value, F32{}, (Lane % Row - Step >= 0 && Lane % Row - Step < Row ? Lane - Step : kLanes + Lane)...);
}

// NaN stays NaN, as in torch.clamp, because both comparisons are false.
static inline F32 clamp(F32 value, F32 low, F32 high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

// ---- bfloat16 -------------------------------------------------------------------------------------------------------
// Float32 numbers without their lower 16 bits. Images may hold them (Bfloat16), and products may multiply pairs of them
// with sums in float32 (Pair). AVX512_BF16 has an instruction for such products. Elsewhere they are emulated with the
// same roundings, for tests.

// An element of an image.
struct Bfloat16 {
    uint16_t bits;
};

// Two factors that are neighbours along the depth of a product; the first one is in the lower half.
typedef uint32_t Pair;

static inline U32 load(const Pair* from) {
    U32 value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(Pair* to, U32 value) { __builtin_memcpy(to, &value, sizeof value); }

static inline U32 broadcast(Pair value) { return value - U32{}; }

// Rounded to the nearest, ties to even, in the lower half of each lane. NaN stays NaN.
static inline U32 rounded(F32 value) {
    const U32 bits = (U32)value, nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return value == value ? nearest : bits >> 16 | 0x40u;
}

static inline F32 load(const Bfloat16* from) {
    U16 bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return (F32)(__builtin_convertvector(bits, U32) << 16);
}

static inline void store(Bfloat16* to, F32 value) {
    const U16 bits = __builtin_convertvector(rounded(value), U16);
    __builtin_memcpy(to, &bits, sizeof bits);
}

static inline F32 load_halves(const Bfloat16* low, const Bfloat16* high) {
    Bfloat16 both[kLanes];
    __builtin_memcpy(both, low, sizeof both / 2);
    __builtin_memcpy(both + kLanes / 2, high, sizeof both / 2);
    return load(both);
}

static inline void store_halves(Bfloat16* low, Bfloat16* high, F32 value) {
    Bfloat16 both[kLanes];
    store(both, value);
    __builtin_memcpy(low, both, sizeof both / 2);
    __builtin_memcpy(high, both + kLanes / 2, sizeof both / 2);
}

static inline float number(float element) { return element; }

static inline float number(Bfloat16 element) {
    const uint32_t bits = static_cast<uint32_t>(element.bits) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void set(float* to, float value) { *to = value; }

static inline void set(Bfloat16* to, float value) { to->bits = static_cast<uint16_t>(rounded(broadcast(value))[0]); }

// (first[i], second[i]) in lane i.
static inline U32 paired(F32 first, F32 second) {
#if !defined(SWK_PORTABLE) && defined(__AVX512BF16__)
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (U32)_mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
    return rounded(first) | rounded(second) << 16;
#endif
}

template <int... Lane>
static inline U32 neighbours(F32 low, F32 high, LaneList<Lane...>) {
    return paired(__builtin_shufflevector(low, high, (2 * Lane)...),
                  __builtin_shufflevector(low, high, (2 * Lane + 1)...));
}

// Elements (2i, 2i + 1) of low followed by high in lane i.
static inline U32 neighbours(F32 low, F32 high) {
#if !defined(SWK_PORTABLE) && defined(__AVX512BF16__)
    return (U32)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
#else
    return neighbours(low, high, Lanes{});
#endif
}

// c + a.second * b.second + a.first * b.first, in this order; the products are exact, every sum is rounded.
static inline F32 madd(U32 a, U32 b, F32 c) {
#if !defined(SWK_PORTABLE) && defined(__AVX512BF16__)
    return (F32)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#else
    c = madd((F32)(a & 0xffff0000u), (F32)(b & 0xffff0000u), c);
    return madd((F32)(a << 16), (F32)(b << 16), c);
#endif
}

}  // namespace swk::SWK_ISA
