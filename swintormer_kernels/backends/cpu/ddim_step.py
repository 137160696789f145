"""ddim_step through csrc/cpu/ddim_step.cpp: float32, any strides, result in z's layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import native
from ..reference.ddim_step import ddim_sigma, root
from .tensors import view


def ddim_step(
    z: Tensor,
    noise_pred: Tensor,
    alpha_bar_t: float,
    alpha_bar_s: float,
    eta: float,
    clip: float | None,
    noise: Tensor | None,
) -> Tensor:
    """See `swintormer_kernels.ops.ddim_step`."""
    out = torch.empty_like(z)
    fresh = view(noise) if noise is not None and eta > 0 else None
    folded = coefficients(alpha_bar_t, alpha_bar_s, eta, clip)
    native.extension().ddim_step(view(out), view(z), view(noise_pred), fresh, folded, torch.get_num_threads())
    return out


def coefficients(alpha_bar_t: float, alpha_bar_s: float, eta: float, clip: float | None) -> tuple[float, ...]:
    """The fields of `DdimStepCoefficients` in csrc/ops/ddim_step.h, which gives their formulas."""
    sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta)
    from_noise = root(1 - alpha_bar_s - sigma**2)
    keep = from_noise / root(1 - alpha_bar_t)
    return (
        1 / root(alpha_bar_t),
        -root((1 - alpha_bar_t) / alpha_bar_t),
        root(alpha_bar_s) - keep * root(alpha_bar_t),
        root(alpha_bar_s / alpha_bar_t) if clip is None else keep,
        from_noise - root(alpha_bar_s * (1 - alpha_bar_t) / alpha_bar_t),
        sigma,
        math.inf if clip is None else clip,
    )
