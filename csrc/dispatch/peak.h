// Measures the peak multiply-add rate of this machine's cores, the reference of "share of peak" in benchmarks.
#pragma once

namespace swk {

// 1e9 float32 operations per second on the instruction set in use; a multiply-add counts as two. The best of several
// slices of 10 ms, so that other processes affect it little. 1 <= threads.
double peak_float32(int threads);

// The same for bfloat16 dot products with float32 sums; 0 if the CPU, the compiler or the instruction set in use does
// not have them (AVX512_BF16).
double peak_bfloat16(int threads);

}  // namespace swk
