// ddim_step in one pass over tensors of any shape in one memory order, `count` 16-bit numbers each; float32 inside.
//
//   with guidance    p   = u + guidance (p - u)
//   with a bound     x0  = clamp(x0_from_z z + x0_from_pred p, -clip, clip)
//                    out = out_from_z z + out_from_x0 x0 + out_from_fresh n
//   without          out = out_from_z z + out_from_pred p + out_from_fresh n
//
// The coefficients come from Python in double precision (backends/reference/ddim_step.py). u and n may be null.
// Bytes of an element: 6, and 2 more each for u and n. MACs: 2, 2 more with a bound, 1 more each for u and n.
// A thread takes 8 neighbours: 16 bytes of each tensor, number by number at the end and where a tensor is not aligned.
#include "ddim_step.h"
#include "words.h"

namespace swk::cuda {
namespace {

struct DdimStepArgs {
    const uint16_t *z, *pred, *fresh, *unconditional;
    uint16_t* out;
    int32_t count, bounded;
    float x0_from_z, x0_from_pred, out_from_x0, out_from_z, out_from_pred, out_from_fresh, clip, guidance;
};

template <typename T>
struct DdimStep {
    const DdimStepArgs& a;

    GPU_FN float one(float z, float pred, float away, float fresh) const {
        if (a.unconditional != nullptr) pred = away + a.guidance * (pred - away);
        float out;
        if (a.bounded) {
            float x0 = a.x0_from_z * z + a.x0_from_pred * pred;
            x0 = x0 > a.clip ? a.clip : x0 < -a.clip ? -a.clip : x0;  // comparisons keep NaN
            out = a.out_from_z * z + a.out_from_x0 * x0;
        } else {
            out = a.out_from_z * z + a.out_from_pred * pred;
        }
        return a.fresh != nullptr ? out + a.out_from_fresh * fresh : out;
    }

    GPU_FN static void load(const uint16_t* from, int place, float (&to)[kVector]) {
        if (from != nullptr) widen<T>(load_vector(from + place), to);
    }

    GPU_FN static float load_one(const uint16_t* from, int place) {
        return from != nullptr ? gpu::value<T>(from[place]) : 0.0f;
    }

    GPU_FN bool aligned() const {
        const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
        return ((bits(a.z) | bits(a.pred) | bits(a.fresh) | bits(a.unconditional) | bits(a.out)) & 15) == 0;
    }

    GPU_FN void run() const {
        const int64_t first = (static_cast<int64_t>(gpu::block()) * kDdimThreads + gpu::thread()) * kVector;
        if (first >= a.count) return;
        const int place = static_cast<int>(first);
        if (aligned() && a.count - place >= kVector) {
            float z[kVector], pred[kVector], fresh[kVector] = {}, away[kVector] = {}, out[kVector];
            load(a.z, place, z);
            load(a.pred, place, pred);
            load(a.fresh, place, fresh);
            load(a.unconditional, place, away);
            for (int i = 0; i < kVector; ++i) out[i] = one(z[i], pred[i], away[i], fresh[i]);
            store_vector(a.out + place, narrow<T>(out));
            return;
        }
        const int there = a.count - place < kVector ? a.count - place : kVector;  // place + kVector may exceed an int
        for (int i = 0; i < there; ++i) {
            const int at = place + i;
            const float out = one(load_one(a.z, at), load_one(a.pred, at), load_one(a.unconditional, at), load_one(a.fresh, at));
            a.out[at] = narrow<T>(out);
        }
    }
};

template <typename T>
GPU_FN void ddim_step(const DdimStepArgs& a) {
    DdimStep<T>{a}.run();
}

}  // namespace

GPU_INSTANCE(ddim_step_bf16, kDdimThreads, 8, DdimStepArgs, ddim_step<gpu::BFloat16>)
GPU_INSTANCE(ddim_step_f16, kDdimThreads, 8, DdimStepArgs, ddim_step<gpu::Float16>)

}  // namespace swk::cuda
