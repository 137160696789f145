// The functions of ../gpu.h on a CPU. Each CUDA thread of a block is a fiber (fiber.h); a function that needs other
// threads suspends its fiber until they have come (block.cpp, collectives.cpp).
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#define GPU_FN inline

// Enters the kernel in the list of emulate.cpp. With SWK_ONLY, a string of names, those alone are compiled.
#define GPU_INSTANCE(name, threads, blocks, Args, ...)                                                     \
    template <bool kWanted>                                                                                \
    static void name([[maybe_unused]] const void* arguments) {                                             \
        if constexpr (kWanted) __VA_ARGS__(*static_cast<const Args*>(arguments));                          \
    }                                                                                                      \
    static const ::gpu::host::Instance name##_instance(#name, name<::gpu::host::wanted(#name)>, threads, sizeof(Args), \
                                                       ::gpu::host::wanted(#name));

namespace gpu {
namespace host {
using Kernel = void (*)(const void* arguments);
struct Instance {
    Instance(const char* name, Kernel kernel, int threads, size_t argument_bytes, bool wanted);
    const char* name;
    Kernel kernel;
    int threads;
    size_t argument_bytes;
};

constexpr bool wanted([[maybe_unused]] const char* name) {
#if defined(SWK_ONLY)
    for (const char* word = SWK_ONLY; *word != 0;) {
        int i = 0;
        while (name[i] != 0 && word[i] == name[i]) ++i;
        if (name[i] == 0 && (word[i] == 0 || word[i] == ' ')) return true;
        while (*word != 0 && *word != ' ') ++word;
        while (*word == ' ') ++word;
    }
    return false;
#else
    return true;
#endif
}

// The line of the kernel that calls.
struct Where {
    const char* file;
    int line;
};
#define GPU_WHERE ::gpu::host::Where where = {__builtin_FILE(), __builtin_LINE()}

enum class Operation : int { shuffle, ldmatrix, ldmatrix_trans, mma_bfloat16, mma_float16, warp_sync };

// One lane's part in an operation of its warp. `size`: lane mask of a shuffle, matrices of ldmatrix, depth of mma.
struct Part {
    Operation operation;
    int size;
    Where where;
    void* result;
    const void* a;
    const void* b;
    const void* pc = nullptr;  // in the kernel
};
void collective(Part part);  // returns when every lane of the warp has come and `result` is there

void barrier(Where where);
void async_copy(void* to, const void* from, int bytes);
void async_commit();
void async_wait(int pending);
enum class Atomic : int { add, max, min };
int atomic(Atomic operation, int* to, int v);

struct Thread {
    int thread, block, blocks;
    unsigned char* shared;
};
extern Thread current;  // of the fiber that runs
}  // namespace host

inline int thread() { return host::current.thread; }
inline int block() { return host::current.block; }
inline int block_count() { return host::current.blocks; }
inline unsigned char* shared() { return host::current.shared; }

inline void block_sync(GPU_WHERE) { host::barrier(where); }
inline void warp_sync(GPU_WHERE) {
    host::collective({host::Operation::warp_sync, 0, where, nullptr, nullptr, nullptr});
}
inline float shuffle_xor(float v, int mask, GPU_WHERE) {
    float out;
    host::collective({host::Operation::shuffle, mask, where, &out, &v, nullptr});
    return out;
}

inline void copy_async16(void* to, const void* from) { host::async_copy(to, from, 16); }
inline void copy_commit() { host::async_commit(); }
template <int kPending>
inline void copy_wait() {
    host::async_wait(kPending);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, GPU_WHERE) {
    host::collective({host::Operation::ldmatrix, 4, where, r, row, nullptr});
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, GPU_WHERE) {
    host::collective({host::Operation::ldmatrix, 2, where, r, row, nullptr});
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, GPU_WHERE) {
    host::collective({host::Operation::ldmatrix_trans, 4, where, r, row, nullptr});
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, GPU_WHERE) {
    host::collective({host::Operation::ldmatrix_trans, 2, where, r, row, nullptr});
}

template <typename T>
constexpr host::Operation kMma = host::Operation::mma_bfloat16;
template <>
constexpr host::Operation kMma<Float16> = host::Operation::mma_float16;
template <typename T>
inline void mma_k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, GPU_WHERE) {
    const uint32_t b[2] = {b0, b1};
    host::collective({kMma<T>, 16, where, c, a, b});
}
template <typename T>
inline void mma_k8(float (&c)[4], const uint32_t (&a)[2], uint32_t b0, GPU_WHERE) {
    host::collective({kMma<T>, 8, where, c, a, &b0});
}

inline float as_float(uint32_t bits) {
    float v;
    __builtin_memcpy(&v, &bits, 4);
    return v;
}
inline uint32_t bits_of(float v) {
    uint32_t bits;
    __builtin_memcpy(&bits, &v, 4);
    return bits;
}
inline float half_as_float(uint16_t bits) {
    const uint32_t sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
    const float magnitude = rest >= 0x7c00u << 13 ? as_float(rest | 0x7f800000u) : as_float(rest) * 0x1p112f;
    return as_float(sign | bits_of(magnitude));
}
namespace host {
inline uint32_t to_bfloat16(float v) {
    const uint32_t u = bits_of(v);
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
inline uint32_t to_float16(float v) {
    const uint32_t u = bits_of(v), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fffu;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // from 65520 up: infinity
    if (magnitude < 0x38800000u)                          // subnormal: units of 2^-24, which 0.5 + v has, too
        return sign | (bits_of(as_float(magnitude) + 0.5f) - 0x3f000000u);
    return sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13);
}
}  // namespace host
template <typename T>
inline uint32_t pack(float low, float high);
template <>
inline uint32_t pack<BFloat16>(float low, float high) {
    return host::to_bfloat16(low) | host::to_bfloat16(high) << 16;
}
template <>
inline uint32_t pack<Float16>(float low, float high) {
    return host::to_float16(low) | host::to_float16(high) << 16;
}

inline float exp2_approx(float v) {
    const float r = std::exp2(v);
    return r < 0x1p-126f ? 0.0f : r;
}
inline float reciprocal_sqrt(float v) { return 1.0f / std::sqrt(v); }
inline float square_root(float v) { return std::sqrt(v); }
inline float maximum(float a, float b) { return std::fmax(a, b); }

inline int atomic_add(int* to, int v) { return host::atomic(host::Atomic::add, to, v); }
inline int atomic_max(int* to, int v) { return host::atomic(host::Atomic::max, to, v); }
inline int atomic_min(int* to, int v) { return host::atomic(host::Atomic::min, to, v); }

// Copied as a whole, as on a GPU, so that the width of a load or store is counted right.
struct alignas(8) Words2 {
    uint32_t w[2];
    using Whole __attribute__((may_alias)) = uint64_t;
    Words2() = default;
    Words2(uint32_t a, uint32_t b) : w{a, b} {}
    Words2(const Words2& o) { *this = o; }
    Words2& operator=(const Words2& o) {
        *reinterpret_cast<Whole*>(w) = *reinterpret_cast<const Whole*>(o.w);
        return *this;
    }
};
struct alignas(16) Words4 {
    uint32_t w[4];
    typedef uint32_t Whole __attribute__((vector_size(16), may_alias));
    Words4() = default;
    Words4(uint32_t a, uint32_t b, uint32_t c, uint32_t d) : w{a, b, c, d} {}
    Words4(const Words4& o) { *this = o; }
    Words4& operator=(const Words4& o) {
        *reinterpret_cast<Whole*>(w) = *reinterpret_cast<const Whole*>(o.w);
        return *this;
    }
};

inline float quad_sum(float v, GPU_WHERE) {
    v += shuffle_xor(v, 1, where);
    return v + shuffle_xor(v, 2, where);
}
inline float quad_max(float v, GPU_WHERE) {
    v = maximum(v, shuffle_xor(v, 1, where));
    return maximum(v, shuffle_xor(v, 2, where));
}
}  // namespace gpu
