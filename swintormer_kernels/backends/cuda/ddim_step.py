"""ddim_step with csrc/cuda/kernels/ddim_step.cu: bfloat16 and float16, result in z's memory layout, float32 inside."""

from __future__ import annotations

import torch
from torch import Tensor

from swintormer_kernels.backends.cuda.runtime import kernels, launch
from swintormer_kernels.backends.reference.ddim_step import coefficients, with_strides_of
from swintormer_kernels.records import Prediction


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
    tensors = (z, noise_pred, noise if eta > 0 else None, unconditional)
    numbers = coefficients(kind, alpha_bar_t, alpha_bar_s, eta, clip)
    choice = kernels().cuda_choose_ddim_step(z.dtype == torch.bfloat16)
    launch(
        "ddim_step",
        choice,
        -(-z.numel() // choice[3]),
        [*(with_strides_of(out, tensor) for tensor in tensors), out],
        [z.numel(), clip is not None],
        [*numbers, guidance],
    )
    return out
