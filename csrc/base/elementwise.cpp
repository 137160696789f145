#include "elementwise.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <numeric>

namespace swk {
namespace {

constexpr int64_t kShortRow = 16;  // lanes of the widest vector

}  // namespace

ElementwisePlan plan_elementwise(int rank, const int64_t* sizes, int operands, const int64_t* const* strides) {
    ElementwisePlan plan{};
    plan.operands = operands;
    plan.length = plan.rows = 1;

    int order[kMaxRank];  // outermost first, without the dimensions of one element
    int kept = 0;
    for (int dim = 0; dim < rank; ++dim) {
        if (sizes[dim] == 0) plan.rows = 0;
        if (sizes[dim] != 1) order[kept++] = dim;
    }
    if (plan.rows == 0) return plan;
    std::stable_sort(order, order + kept, [&](int a, int b) {
        return std::abs(strides[0][a]) > std::abs(strides[0][b]);
    });

    for (int i = 0; i < kept; ++i) {
        const int dim = order[i];
        bool merges = plan.rank > 0;
        for (int k = 0; k < operands && merges; ++k) {
            merges = plan.strides[k][plan.rank - 1] == strides[k][dim] * sizes[dim];
        }
        if (!merges) plan.sizes[plan.rank++] = 1;
        plan.sizes[plan.rank - 1] *= sizes[dim];
        for (int k = 0; k < operands; ++k) plan.strides[k][plan.rank - 1] = strides[k][dim];
    }
    if (plan.rank == 0) return plan;

    // The innermost dimension becomes the row, or the longest one if the innermost does not fill a vector: with
    // channels_last and NCHW operands rows would be a few channels (4 x 512 x 512, one thread: 14.0 ms, 1.1 with long
    // rows).
    if (plan.sizes[plan.rank - 1] < kShortRow) {
        const int64_t* longest = std::max_element(plan.sizes, plan.sizes + plan.rank);
        const int from = static_cast<int>(longest - plan.sizes);
        std::rotate(plan.sizes + from, plan.sizes + from + 1, plan.sizes + plan.rank);
        for (int k = 0; k < operands; ++k) {
            std::rotate(plan.strides[k] + from, plan.strides[k] + from + 1, plan.strides[k] + plan.rank);
        }
    }
    --plan.rank;
    plan.length = plan.sizes[plan.rank];
    for (int k = 0; k < operands; ++k) plan.stride[k] = plan.strides[k][plan.rank];
    plan.rows = std::accumulate(plan.sizes, plan.sizes + plan.rank, int64_t{1}, std::multiplies<int64_t>());
    return plan;
}

void row_offsets(const ElementwisePlan& plan, int64_t row, int64_t* offsets) {
    std::fill(offsets, offsets + plan.operands, 0);
    for (int dim = plan.rank - 1; dim >= 0; --dim) {
        const int64_t index = row % plan.sizes[dim];
        row /= plan.sizes[dim];
        for (int k = 0; k < plan.operands; ++k) offsets[k] += index * plan.strides[k][dim];
    }
}

}  // namespace swk
