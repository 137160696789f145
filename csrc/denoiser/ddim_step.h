// ddim_step: one DDIM update of a latent (Song et al. 2021, eq. 12), element by element:
//
// with guidance    p   = u + guidance (p - u)
// with a bound     x0  = clamp(x0_from_z z + x0_from_pred p, -clip, clip)
//                  out = out_from_z z + out_from_x0 x0 + out_from_fresh n
// without          out = out_from_z z + out_from_pred p + out_from_fresh n
//
// The caller folds the schedule into the coefficients in double precision, with a = sqrt(a_t), b = sqrt(1 - a_t),
// A = sqrt(a_s) and d = sqrt(1 - a_s - sigma^2):
//
//   p predicts       noise e      x0           v
//   x0_from_z        1 / a        0            a
//   x0_from_pred     -b / a       1            -b
//   out_from_z       A / a        d / b        A a + d b     without a bound; with one d / b
//   out_from_pred    d - A b / a  A - d a / b  d a - A b
//   out_from_x0      A - d a / b
//   out_from_fresh   sigma
//
// With a bound, the noise is e' = (z - a x0) / b. Without a bound e' is e, and computing it from x0 would lose digits
// to cancellation by 1 / b: errors were 3.5 times the rounding bound for an inversion step from a_t = 0.9985 and 455
// times from 1 - 1e-6.
#pragma once

#include <cstdint>

namespace swk {

struct DdimStepCoefficients {
    float x0_from_z, x0_from_pred;
    float out_from_x0, out_from_z, out_from_pred, out_from_fresh;
    float clip;      // bound of |x0|, infinity for none
    float guidance;  // not read without unconditional
};

struct DdimStepArgs {
    int rank;               // of all tensors, 0 to kMaxRank (elementwise.h)
    const int64_t* sizes;   // [rank], the common shape; a size may be 0
    float* out;             // must not overlap an input
    const float* z;         // latent at t
    const float* pred;      // p, the prediction
    const float* fresh;     // n ~ N(0, 1), or nullptr when sigma = 0
    const float* unconditional;  // u, the prediction without the condition, or nullptr
    // [rank] each, in elements; inputs may have any strides, 0 (expanded) too; nullptr for an absent tensor.
    const int64_t* out_strides;
    const int64_t* z_strides;
    const int64_t* pred_strides;
    const int64_t* fresh_strides;
    const int64_t* unconditional_strides;
    DdimStepCoefficients coefficients;
    int threads;            // at most this many are used
};

}  // namespace swk
