// ddim_step: one DDIM update of a latent (Song et al. 2021, eq. 12), element by element:
//
// with a bound     x0  = clamp(x0_from_z z + x0_from_noise e, -clip, clip)
//                  out = out_from_z z + out_from_x0 x0 + out_from_fresh n
// without          out = out_from_z z + out_from_noise e + out_from_fresh n
//
// The caller folds the schedule into the coefficients in double precision. With a bound, x0 implies the noise
// e' = (z - sqrt(a_t) x0) / sqrt(1 - a_t). Without one e' is e, and going through x0 all the same would cancel by
// 1 / sqrt(1 - a_t): an inversion step from a_t = 0.9985 came out at 3.5 times the rounding bound, from 1 - 1e-6 at 455.
#pragma once

#include <cstdint>

namespace swk {

struct DdimStepCoefficients {
    float x0_from_z;       // 1 / sqrt(a_t)
    float x0_from_noise;   // -sqrt((1 - a_t) / a_t)
    float out_from_x0;     // sqrt(a_s) - d sqrt(a_t / (1 - a_t)), with d = sqrt(1 - a_s - sigma^2)
    float out_from_z;      // with a bound d / sqrt(1 - a_t), without sqrt(a_s / a_t)
    float out_from_noise;  // d - sqrt(a_s (1 - a_t) / a_t)
    float out_from_fresh;  // sigma
    float clip;            // bound of |x0|, infinity for none
};

struct DdimStepArgs {
    int rank;               // of all four tensors, 0 to kMaxRank (elementwise.h)
    const int64_t* sizes;   // [rank], the common shape; a size may be 0
    float* out;             // overlaps no input
    const float* z;         // latent at t
    const float* noise;     // e, predicted noise
    const float* fresh;     // n ~ N(0, 1), or nullptr when sigma = 0
    // [rank] each, in elements; inputs may have any strides, 0 (expanded) too. fresh_strides is nullptr without fresh.
    const int64_t* out_strides;
    const int64_t* z_strides;
    const int64_t* noise_strides;
    const int64_t* fresh_strides;
    DdimStepCoefficients coefficients;
    int threads;            // at most so many
};

}  // namespace swk
