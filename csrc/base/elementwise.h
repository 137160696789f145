// Iterates over tensors of the same shape and any strides together. Compiled once, not per instruction set.
#pragma once

#include <cstdint>

namespace swk {

constexpr int kMaxRank = 64;     // torch allows no more
constexpr int kMaxOperands = 5;

// Loops over `rows` rows of `length` elements. Element i of a row of operand k is at offset
// row_offset[k] + i * stride[k].
struct ElementwisePlan {
    int operands;
    int64_t length;                  // of a row, at least 1
    int64_t rows;                    // 0 if a size is 0
    int64_t stride[kMaxOperands];    // inside a row, in elements
    int rank;                        // of the row index, outermost dimension first
    int64_t sizes[kMaxRank];
    int64_t strides[kMaxOperands][kMaxRank];
};

// Orders dimensions by the stride of operand 0 (the output), smallest innermost, and merges those that are contiguous
// in every operand. The innermost dimension becomes the row, or the longest one if the innermost is short. `strides[k]`
// are the strides of operand k, [rank].
ElementwisePlan plan_elementwise(int rank, const int64_t* sizes, int operands, const int64_t* const* strides);

// Writes the offset of row `row` for each operand, in elements.
void row_offsets(const ElementwisePlan& plan, int64_t row, int64_t* offsets);

}  // namespace swk
