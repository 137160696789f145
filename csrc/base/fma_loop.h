// The loop that measures the peak rate of a core: multiply-adds in registers, in enough chains to hide their latency.
#pragma once

#include <cstdint>

namespace swk {

struct FmaLoopArgs {
    int64_t rounds;
    float factor, addend;  // factor 0.5 keeps values finite; arguments, so that the compiler cannot compute the result
    float* result;         // [1], the sum of the chains
    int64_t* operations;   // of one round; a multiply-add counts as two
};

}  // namespace swk
