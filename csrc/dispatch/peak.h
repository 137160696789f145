// The multiply-add peak of this machine's cores, measured: what a share of the machine's rate is a share of.
#pragma once

namespace swk {

// Billions of float32 operations a second on the instruction set in use, a multiply-add counting as two; the best of
// several slices of 10 ms, so that other work on the machine lowers it little. 1 <= threads.
double peak_float32(int threads);

// The same of bfloat16 dot products with float32 sums; 0 where the CPU, the compiler or the instruction set in use has
// none (AVX512_BF16, with avx512).
double peak_bfloat16(int threads);

}  // namespace swk
