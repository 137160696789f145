// The work that measures a core's peak: multiply-adds of registers alone, in chains enough to hide their latency.
#pragma once

#include <cstdint>

namespace swk {

struct FmaLoopArgs {
    int64_t rounds;
    float factor, addend;  // a value stays finite with factor 0.5; not constants, or the compiler would do the work
    float* result;         // [1], what the chains add up to
    int64_t* operations;   // of one round; a multiply-add counts as two
};

}  // namespace swk
