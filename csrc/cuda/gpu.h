// What CUDA kernels may use, for two compilers: nvcc makes PTX of it, g++ takes host/emulated.h, where each CUDA thread is
// a fiber on the CPU and what it does to memory is checked (docs/cuda.md). Kernels name no other CUDA function.
//
// Fragments of mma and ldmatrix (PTX ISA, "Matrix fragments for mma.m16n8k16", "... m16n8k8", "ldmatrix"; g = lane / 4,
// t = lane % 4; a register holds two neighbours, the lower index in the low half):
//   A (16 x k)  a[0] = (g, 2t..)  a[1] = (g + 8, 2t..)  and for k = 16: a[2] = (g, 2t + 8..)  a[3] = (g + 8, 2t + 8..)
//   B (k x 8)   b0 = (2t.., g)    and for k = 16: b1 = (2t + 8.., g)
//   C (16 x 8)  c[0], c[1] = (g, 2t), (g, 2t + 1)  c[2], c[3] = (g + 8, 2t), (g + 8, 2t + 1)
//   ldmatrix    lanes 8i to 8i + 7 give the rows (8 values, 16 bytes) of matrix i; r[i] = (g, 2t..), transposed (2t.., g)
#pragma once
#include <cstdint>

namespace gpu {
// The 16-bit types, as template arguments; their bits travel in uint16_t and, by pairs, in uint32_t.
struct BFloat16 {};
struct Float16 {};
}  // namespace gpu

#if defined(__CUDACC__)
#define GPU_FN __device__ __forceinline__

// One kernel: GPU_INSTANCE(name, threads of a block, least blocks of a multiprocessor, Args, function<template arguments>)
// with `void function(const Args&)`. Args: pointers, then int32_t, then float, without padding. Arguments with commas in
// them, the last apart, stand in parentheses.
#define GPU_INSTANCE(name, threads, blocks, Args, ...)                                                            \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args arguments) { \
        __VA_ARGS__(arguments);                                                                                   \
    }

namespace gpu {
GPU_FN int thread() { return static_cast<int>(threadIdx.x); }
GPU_FN int block() { return static_cast<int>(blockIdx.x); }
GPU_FN int block_count() { return static_cast<int>(gridDim.x); }
GPU_FN unsigned char* shared() {
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
}

// block_sync orders all memory accesses of the block, warp_sync those of the warp. Nothing else orders any.
GPU_FN void block_sync() { __syncthreads(); }
GPU_FN void warp_sync() { __syncwarp(); }
GPU_FN float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// 16 bytes from global to shared memory, both aligned to 16. Copies of a thread since its last commit make a group;
// copy_wait<n> returns when all of its groups but the last n have come, to this thread: others need a barrier after it.
GPU_FN unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
GPU_FN void copy_async16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from))
                 : "memory");
}
GPU_FN void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
GPU_FN void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

GPU_FN void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
GPU_FN void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
GPU_FN void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
GPU_FN void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// c += a b, sums in float32.
template <typename T>
GPU_FN void mma_k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
GPU_FN void mma_k16<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
GPU_FN void mma_k16<Float16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <typename T>
GPU_FN void mma_k8(float (&c)[4], const uint32_t (&a)[2], uint32_t b0);
template <>
GPU_FN void mma_k8<BFloat16>(float (&c)[4], const uint32_t (&a)[2], uint32_t b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
}
template <>
GPU_FN void mma_k8<Float16>(float (&c)[4], const uint32_t (&a)[2], uint32_t b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
}

// Two values rounded to nearest even, and back.
template <typename T>
GPU_FN uint32_t pack(float low, float high);
template <>
GPU_FN uint32_t pack<BFloat16>(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <>
GPU_FN uint32_t pack<Float16>(float low, float high) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
GPU_FN float as_float(uint32_t bits) { return __uint_as_float(bits); }
GPU_FN float half_as_float(uint16_t bits) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
    return r;
}

GPU_FN float exp2_approx(float v) {  // 2^v; below 2^-126: 0
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
GPU_FN float reciprocal_sqrt(float v) { return rsqrtf(v); }
GPU_FN float square_root(float v) { return sqrtf(v); }
GPU_FN float maximum(float a, float b) { return fmaxf(a, b); }

// Each gives the value before. Of whole numbers alone: sums of float in no fixed order are not reproducible.
GPU_FN int atomic_add(int* to, int v) { return atomicAdd(to, v); }
GPU_FN int atomic_max(int* to, int v) { return atomicMax(to, v); }
GPU_FN int atomic_min(int* to, int v) { return atomicMin(to, v); }

struct alignas(8) Words2 {
    uint32_t w[2];
};
struct alignas(16) Words4 {
    uint32_t w[4];
};

// Sum and maximum over the four lanes 4g to 4g + 3, which hold one row of C.
GPU_FN float quad_sum(float v) {
    v += shuffle_xor(v, 1);
    return v + shuffle_xor(v, 2);
}
GPU_FN float quad_max(float v) {
    v = maximum(v, shuffle_xor(v, 1));
    return maximum(v, shuffle_xor(v, 2));
}
}  // namespace gpu
#else
#include "host/emulated.h"
#endif

namespace gpu {
// The float32 value of a 16-bit number, and of the halves of a pair.
template <typename T>
GPU_FN float value(uint16_t bits);
template <>
GPU_FN float value<BFloat16>(uint16_t bits) {
    return as_float(static_cast<uint32_t>(bits) << 16);
}
template <>
GPU_FN float value<Float16>(uint16_t bits) {
    return half_as_float(bits);
}
template <typename T>
GPU_FN float low(uint32_t pair) {
    return value<T>(static_cast<uint16_t>(pair));
}
template <typename T>
GPU_FN float high(uint32_t pair) {
    return value<T>(static_cast<uint16_t>(pair >> 16));
}
GPU_FN int lane() { return thread() & 31; }
GPU_FN int warp() { return thread() >> 5; }
}  // namespace gpu
