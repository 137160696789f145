"""ddim_step in one pass: float32, bfloat16, float16; result in z's memory layout, arithmetic in float32.

    with guidance    p   = u + guidance (p - u)
    with a bound     x0  = clamp(x0_from_z z + x0_from_pred p, -clip, clip)
                     out = out_from_z z + out_from_x0 x0 + out_from_fresh n
    without          out = out_from_z z + out_from_pred p + out_from_fresh n

csrc/denoiser/ddim_step.h gives the coefficients for each kind of prediction, and the reason why the formula without a
bound does not use x0. They are computed in double precision. Tensors have any shape and are processed in memory order;
tensors with other strides than out are copied first. Bytes per element, S of an element: 3 S (z and p read, out
written), and S more each for n and u. MACs per element: 2, 2 more with a bound, 1 more each for n and u.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from swintormer_kernels.backends.reference.ddim_step import coefficients, with_strides_of
from swintormer_kernels.backends.triton.runtime import launch, narrow, widen
from swintormer_kernels.records import Prediction

# Eight elements for each of 128 threads: loads of 16 bytes in bfloat16. A latent of 4x128x128 gives 64 programs.
BLOCK = 1024
WARPS = 4


def ddim_step(
    z: Tensor,
    noise_pred: Tensor,
    alpha_bar_t: float,
    alpha_bar_s: float,
    eta: float,
    clip: float | None,
    noise: Tensor | None,
    prediction: Prediction,
) -> Tensor:
    """See `swintormer_kernels.ops.ddim_step`."""
    out = torch.empty_like(z)
    kind, unconditional, guidance = prediction
    given = (z, noise_pred, noise if eta > 0 else None, unconditional)
    tensors = tuple(with_strides_of(out, tensor) for tensor in given)
    x0_from_z, x0_from_pred, *rest, bound = coefficients(kind, alpha_bar_t, alpha_bar_s, eta, clip)
    launch(
        step,
        (triton.cdiv(z.numel(), BLOCK),),
        *(tensors, out, (x0_from_z, x0_from_pred, bound), (*rest, guidance), z.numel()),
        BOUNDED=clip is not None,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return out


@triton.jit(do_not_specialize=["n"])
def step(tensors, out, of_x0, of_out, n, BOUNDED: tl.constexpr, BLOCK: tl.constexpr):
    """One program per BLOCK elements. tensors: z, p, n, u; the last two may be None."""
    z, pred, fresh, unconditional = tensors
    x0_from_z, x0_from_pred, clip = of_x0
    out_from_x0, out_from_z, out_from_pred, out_from_fresh, guidance = of_out
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = place < n
    latent = widen(tl.load(z + place, valid, other=0))
    predicted = widen(tl.load(pred + place, valid, other=0))
    if unconditional is not None:
        away = widen(tl.load(unconditional + place, valid, other=0))
        predicted = away + guidance * (predicted - away)
    if BOUNDED:
        x0 = x0_from_z * latent + x0_from_pred * predicted
        # Comparisons instead of minimum and maximum, which may drop NaN.
        x0 = tl.where(x0 > clip, clip, tl.where(x0 < -clip, -clip, x0))
        result = out_from_z * latent + out_from_x0 * x0
    else:
        result = out_from_z * latent + out_from_pred * predicted
    if fresh is not None:
        result += out_from_fresh * widen(tl.load(fresh + place, valid, other=0))
    tl.store(out + place, narrow(result, out.dtype.element_ty), valid)
