"""ddim_step in csrc/denoiser/ddim_step.cpp: float32, any strides, result in z's memory layout."""

from __future__ import annotations

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import view
from swintormer_kernels.backends.reference.ddim_step import coefficients
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
    kind, unconditional, guidance_scale = prediction
    native.extension().ddim_step(
        out=view(out),
        z=view(z),
        pred=view(noise_pred),
        fresh=view(noise) if noise is not None and eta > 0 else None,
        unconditional=view(unconditional) if unconditional is not None else None,
        **coefficients(kind, alpha_bar_t, alpha_bar_s, eta, clip)._asdict(),
        guidance=guidance_scale,
        threads=torch.get_num_threads(),
    )
    return out
