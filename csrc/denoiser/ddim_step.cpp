// ddim_step on the CPU, float32: one DDIM update, element by element. Formula and coefficients: ddim_step.h.
//
//   out = out_from_z z + out_from_x0 clamp(x0_from_z z + x0_from_pred p) + out_from_fresh n     with a bound on x0
//   out = out_from_z z + out_from_pred p + out_from_fresh n                                      without
//
// Shapes and memory layout: all tensors have the same shape, any rank and any strides (base/elementwise.h).
// Bytes per element: 12 (z and p read, out written), 4 more each for n and for guidance. MACs: 2, 2 more with a bound,
// 1 more each for n and for guidance. Memory bandwidth decides the time.
#include "ddim_step.h"

#include "../base/elementwise.h"
#include "../base/parallel.h"
#include "../base/simd.h"

namespace swk::SWK_ISA {
namespace {

// Operands in the order of the plan. Optional operands come last and have no place if they are absent.
enum { kOut, kZ, kPred };

struct Pointers {
    float* out;
    const float *z, *pred, *fresh, *unconditional;
};

template <bool Bounded, bool HasFresh, bool Guided>
struct Step {
    static constexpr int kFresh = kPred + 1, kUnconditional = kPred + 1 + HasFresh;
    static constexpr int kOperands = kUnconditional + Guided;

    const DdimStepArgs& args;
    ElementwisePlan plan;

    explicit Step(const DdimStepArgs& args_) : args(args_) {
        const int64_t* strides[5] = {args.out_strides, args.z_strides, args.pred_strides};
        if constexpr (HasFresh) strides[kFresh] = args.fresh_strides;
        if constexpr (Guided) strides[kUnconditional] = args.unconditional_strides;
        plan = plan_elementwise(args.rank, args.sizes, kOperands, strides);
    }

    // `count` elements of a row.
    void row(Pointers at, int64_t count) const {
        const DdimStepCoefficients& c = args.coefficients;
        [[maybe_unused]] const F32 low = broadcast(-c.clip), high = broadcast(c.clip);
        const int64_t* stride = plan.stride;
        for (int64_t i = 0; i < count; i += kLanes) {
            const int lanes = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
            const F32 z = load(at.z + i * stride[kZ], stride[kZ], lanes);
            F32 pred = load(at.pred + i * stride[kPred], stride[kPred], lanes);
            if constexpr (Guided) {
                const int64_t step = stride[kUnconditional];
                const F32 unconditional = load(at.unconditional + i * step, step, lanes);
                pred = madd(broadcast(c.guidance), pred - unconditional, unconditional);
            }
            F32 out = broadcast(c.out_from_z) * z;
            if constexpr (Bounded) {
                const F32 x0 = madd(broadcast(c.x0_from_pred), pred, broadcast(c.x0_from_z) * z);
                out = madd(broadcast(c.out_from_x0), clamp(x0, low, high), out);
            } else {
                out = madd(broadcast(c.out_from_pred), pred, out);
            }
            if constexpr (HasFresh) {
                const F32 fresh = load(at.fresh + i * stride[kFresh], stride[kFresh], lanes);
                out = madd(broadcast(c.out_from_fresh), fresh, out);
            }
            store(at.out + i * stride[kOut], stride[kOut], lanes, out);
        }
    }

    void run() const {
        // 32768 elements take 6 us; waking torch's threads takes 2 us.
        constexpr int64_t kGrain = 32768;
        parallel_for(plan.rows * plan.length, kGrain, 64, args.threads, [&](int64_t begin, int64_t end, int) {
            while (begin < end) {
                int64_t offsets[kMaxOperands];
                row_offsets(plan, begin / plan.length, offsets);
                const int64_t first = begin % plan.length;
                const int64_t left = plan.length - first;
                const int64_t count = end - begin < left ? end - begin : left;
                const auto place = [&](int operand) { return offsets[operand] + first * plan.stride[operand]; };
                Pointers at{args.out + place(kOut), args.z + place(kZ), args.pred + place(kPred), nullptr, nullptr};
                if constexpr (HasFresh) at.fresh = args.fresh + place(kFresh);
                if constexpr (Guided) at.unconditional = args.unconditional + place(kUnconditional);
                row(at, count);
                begin += count;
            }
        });
    }
};

template <bool Bounded, bool HasFresh>
void step(const DdimStepArgs& args) {
    if (args.unconditional) {
        Step<Bounded, HasFresh, true>(args).run();
    } else {
        Step<Bounded, HasFresh, false>(args).run();
    }
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
