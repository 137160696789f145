// ddim_step on the CPU: one pass, four streams of memory. Bandwidth decides: 16 bytes for at most 5 multiply-adds.
#include "../ops/ddim_step.h"

#include "elementwise.h"
#include "parallel.h"
#include "simd.h"

namespace swk::SWK_ISA {
namespace {

// Operands in the plan's order.
enum { kOut, kZ, kNoise, kFresh };

struct Pointers {
    float* out;
    const float *z, *noise, *fresh;
};

// `count` elements of a row.
template <bool Bounded, bool HasFresh>
void step_row(const DdimStepCoefficients& c, const ElementwisePlan& plan, Pointers at, int64_t count) {
    [[maybe_unused]] const F32 low = broadcast(-c.clip), high = broadcast(c.clip);
    const int64_t* stride = plan.stride;
    for (int64_t i = 0; i < count; i += kLanes) {
        const int lanes = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
        const F32 z = load(at.z + i * stride[kZ], stride[kZ], lanes);
        const F32 noise = load(at.noise + i * stride[kNoise], stride[kNoise], lanes);
        F32 out = broadcast(c.out_from_z) * z;
        if constexpr (Bounded) {
            const F32 x0 = madd(broadcast(c.x0_from_noise), noise, broadcast(c.x0_from_z) * z);
            out = madd(broadcast(c.out_from_x0), clamp(x0, low, high), out);
        } else {
            out = madd(broadcast(c.out_from_noise), noise, out);
        }
        if constexpr (HasFresh) {
            const F32 fresh = load(at.fresh + i * stride[kFresh], stride[kFresh], lanes);
            out = madd(broadcast(c.out_from_fresh), fresh, out);
        }
        store(at.out + i * stride[kOut], stride[kOut], lanes, out);
    }
}

template <bool Bounded, bool HasFresh>
void step(const DdimStepArgs& args) {
    const int64_t* strides[] = {args.out_strides, args.z_strides, args.noise_strides, args.fresh_strides};
    const ElementwisePlan plan = plan_elementwise(args.rank, args.sizes, HasFresh ? 4 : 3, strides);

    // 32768 elements are 6 us of work, and waking torch's threads takes 2 us.
    constexpr int64_t kGrain = 32768;
    parallel_for(plan.rows * plan.length, kGrain, 64, args.threads, [&](int64_t begin, int64_t end, int) {
        while (begin < end) {
            int64_t offsets[kMaxOperands];
            row_offsets(plan, begin / plan.length, offsets);
            const int64_t first = begin % plan.length;
            const int64_t left = plan.length - first;
            const int64_t count = end - begin < left ? end - begin : left;
            Pointers at{args.out + offsets[kOut] + first * plan.stride[kOut],
                        args.z + offsets[kZ] + first * plan.stride[kZ],
                        args.noise + offsets[kNoise] + first * plan.stride[kNoise], nullptr};
            if constexpr (HasFresh) at.fresh = args.fresh + offsets[kFresh] + first * plan.stride[kFresh];
            step_row<Bounded, HasFresh>(args.coefficients, plan, at, count);
            begin += count;
        }
    });
}

}  // namespace

void ddim_step(const DdimStepArgs& args) {
    const bool bounded = args.coefficients.clip < __builtin_inff();
    if (bounded) {
        args.fresh ? step<true, true>(args) : step<true, false>(args);
    } else {
        args.fresh ? step<false, true>(args) : step<false, false>(args);
    }
}

}  // namespace swk::SWK_ISA
