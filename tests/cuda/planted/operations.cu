// The operations of gpu.h bare, for test_operations.py: registers in, registers out. One warp.
#include "gpu.h"

struct Arguments {
    const uint32_t* a;
    const uint32_t* b;
    const float* c;
    void* out;
    int32_t n;
};

// a: (32 lanes, 4), b: (32, 2), c and out: (32, 4).
template <typename T, int kDepth>
GPU_FN void mma(const Arguments& arguments) {
    const int l = gpu::lane();
    uint32_t a[kDepth / 4];
    float c[4];
#pragma unroll
    for (int i = 0; i < kDepth / 4; ++i) a[i] = arguments.a[4 * l + i];
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = arguments.c[4 * l + i];
    if constexpr (kDepth == 16) gpu::mma_k16<T>(c, a, arguments.b[2 * l], arguments.b[2 * l + 1]);
    else gpu::mma_k8<T>(c, a, arguments.b[2 * l]);
#pragma unroll
    for (int i = 0; i < 4; ++i) static_cast<float*>(arguments.out)[4 * l + i] = c[i];
}
GPU_INSTANCE(mma_k16_bfloat16, 32, 1, Arguments, mma<gpu::BFloat16, 16>)
GPU_INSTANCE(mma_k16_float16, 32, 1, Arguments, mma<gpu::Float16, 16>)
GPU_INSTANCE(mma_k8_bfloat16, 32, 1, Arguments, mma<gpu::BFloat16, 8>)
GPU_INSTANCE(mma_k8_float16, 32, 1, Arguments, mma<gpu::Float16, 8>)

// a: (32 rows of 16 bytes), b: (32 lanes), the row that each lane gives; out: (32 lanes, kCount).
template <int kCount, bool kTransposed>
GPU_FN void ldmatrix(const Arguments& arguments) {
    const int l = gpu::lane();
    gpu::copy_async16(gpu::shared() + 16 * l, arguments.a + 4 * l);
    gpu::copy_commit();
    gpu::copy_wait<0>();
    gpu::warp_sync();
    const unsigned char* row = gpu::shared() + 16 * arguments.b[l];
    uint32_t r[kCount];
    if constexpr (kCount == 4 && kTransposed) gpu::ldmatrix_x4_trans(r, row);
    else if constexpr (kCount == 4) gpu::ldmatrix_x4(r, row);
    else if constexpr (kTransposed) gpu::ldmatrix_x2_trans(r, row);
    else gpu::ldmatrix_x2(r, row);
#pragma unroll
    for (int i = 0; i < kCount; ++i) static_cast<uint32_t*>(arguments.out)[kCount * l + i] = r[i];
}
GPU_INSTANCE(ldmatrix_x4_plain, 32, 1, Arguments, ldmatrix<4, false>)
GPU_INSTANCE(ldmatrix_x2_plain, 32, 1, Arguments, ldmatrix<2, false>)
GPU_INSTANCE(ldmatrix_x4_trans, 32, 1, Arguments, ldmatrix<4, true>)
GPU_INSTANCE(ldmatrix_x2_trans, 32, 1, Arguments, ldmatrix<2, true>)

// n pairs of floats to pairs of 16-bit numbers.
template <typename T>
GPU_FN void pack(const Arguments& arguments) {
    for (int i = 32 * gpu::block() + gpu::thread(); i < arguments.n; i += 32 * gpu::block_count())
        static_cast<uint32_t*>(arguments.out)[i] = gpu::pack<T>(arguments.c[2 * i], arguments.c[2 * i + 1]);
}
GPU_INSTANCE(pack_bfloat16, 32, 1, Arguments, pack<gpu::BFloat16>)
GPU_INSTANCE(pack_float16, 32, 1, Arguments, pack<gpu::Float16>)

// n pairs of 16-bit numbers to pairs of floats.
template <typename T>
GPU_FN void unpack(const Arguments& arguments) {
    for (int i = 32 * gpu::block() + gpu::thread(); i < arguments.n; i += 32 * gpu::block_count()) {
        float* out = static_cast<float*>(arguments.out) + 2 * i;
        out[0] = gpu::low<T>(arguments.a[i]), out[1] = gpu::high<T>(arguments.a[i]);
    }
}
GPU_INSTANCE(unpack_bfloat16, 32, 1, Arguments, unpack<gpu::BFloat16>)
GPU_INSTANCE(unpack_float16, 32, 1, Arguments, unpack<gpu::Float16>)

// c: (32). out: (10, 32), a function each.
GPU_FN void functions(const Arguments& arguments) {
    const float v = arguments.c[gpu::lane()];
    float* out = static_cast<float*>(arguments.out) + gpu::lane();
    out[0] = gpu::exp2_approx(v);
    out[32] = gpu::reciprocal_sqrt(v);
    out[64] = gpu::square_root(v);
    out[96] = gpu::maximum(v, 1.0f);
    out[128] = gpu::quad_sum(v);
    out[160] = gpu::quad_max(v);
    out[192] = gpu::shuffle_xor(v, 16);
    out[224] = gpu::shuffle_xor(v, 5);
    const gpu::Words4 four = *reinterpret_cast<const gpu::Words4*>(arguments.c + 4 * (gpu::lane() & 7));
    const gpu::Words2 two = *reinterpret_cast<const gpu::Words2*>(arguments.c + 2 * (gpu::lane() & 15));
    out[256] = gpu::as_float(four.w[3]);
    out[288] = gpu::as_float(two.w[1]);
}
GPU_INSTANCE(functions_kernel, 32, 1, Arguments, functions)

// out: (3), sum, largest and smallest of thread + 32 block over all threads.
GPU_FN void atomics(const Arguments& arguments) {
    int* out = static_cast<int*>(arguments.out);
    const int v = 32 * gpu::block() + gpu::thread() - arguments.n;
    gpu::atomic_add(out, v);
    gpu::atomic_max(out + 1, v);
    gpu::atomic_min(out + 2, v);
}
GPU_INSTANCE(atomics_kernel, 32, 1, Arguments, atomics)
