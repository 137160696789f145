// Eight 16-bit numbers as one vector of 16 bytes, and what is computed of them in float32.
#pragma once

#include "../gpu.h"

namespace swk::cuda {

constexpr int kVector = 8;  // numbers in 16 bytes

template <typename T>
GPU_FN void widen(const gpu::Words4& words, float (&to)[kVector]) {
    for (int i = 0; i < kVector / 2; ++i) {
        to[2 * i] = gpu::low<T>(words.w[i]);
        to[2 * i + 1] = gpu::high<T>(words.w[i]);
    }
}

template <typename T>
GPU_FN gpu::Words4 narrow(const float (&from)[kVector]) {
    gpu::Words4 words;
    for (int i = 0; i < kVector / 2; ++i) words.w[i] = gpu::pack<T>(from[2 * i], from[2 * i + 1]);
    return words;
}

template <typename T>
GPU_FN uint16_t narrow(float v) {
    return static_cast<uint16_t>(gpu::pack<T>(v, 0.0f));
}

// p must be a multiple of 16 bytes.
GPU_FN gpu::Words4 load_vector(const uint16_t* p) { return *reinterpret_cast<const gpu::Words4*>(p); }
GPU_FN void store_vector(uint16_t* p, const gpu::Words4& words) { *reinterpret_cast<gpu::Words4*>(p) = words; }

// Eight float32 numbers from a multiple of 16 bytes.
GPU_FN void load_floats(const float* p, float (&to)[kVector]) {
    for (int half = 0; half < 2; ++half) {
        const gpu::Words4 words = reinterpret_cast<const gpu::Words4*>(p)[half];
        for (int i = 0; i < 4; ++i) to[4 * half + i] = gpu::as_float(words.w[i]);
    }
}

// v sigmoid(v). 1 / (1 + e) is the square of a reciprocal root: two instructions, where a division takes ten and a branch.
// exp2 overflows to infinity for v below -88, where the product is 0 as it should be.
GPU_FN float silu(float v) {
    const float root = gpu::reciprocal_sqrt(1.0f + gpu::exp2_approx(-1.4426950408889634f * v));
    return v * root * root;
}

}  // namespace swk::cuda
