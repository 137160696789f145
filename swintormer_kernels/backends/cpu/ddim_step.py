"""ddim_step through csrc/denoiser/ddim_step.cpp: float32, any strides, result in z's layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cpu.layout import view
from swintormer_kernels.backends.reference.ddim_step import ddim_sigma, root
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


class Coefficients(NamedTuple):
    """`DdimStepCoefficients` of csrc/denoiser/ddim_step.h, which gives the formulas, but the guidance."""

    x0_from_z: float
    x0_from_pred: float
    out_from_x0: float
    out_from_z: float
    out_from_pred: float
    out_from_fresh: float
    clip: float


def coefficients(kind: str, alpha_bar_t: float, alpha_bar_s: float, eta: float, clip: float | None) -> Coefficients:
    """The coefficients of one step, of float64; clip is infinity where there is no bound."""
    signal, spread, signal_s = root(alpha_bar_t), root(1 - alpha_bar_t), root(alpha_bar_s)
    sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta)
    from_noise = root(1 - alpha_bar_s - sigma**2)
    keep = from_noise / spread
    if kind == "epsilon":
        x0 = 1 / signal, -spread / signal
        out = root(alpha_bar_s / alpha_bar_t), from_noise - root(alpha_bar_s * (1 - alpha_bar_t) / alpha_bar_t)
    elif kind == "sample":
        x0 = 0.0, 1.0
        out = keep, signal_s - keep * signal
    else:
        x0 = signal, -spread
        out = signal_s * signal + from_noise * spread, from_noise * signal - signal_s * spread
    bound = math.inf if clip is None else clip
    return Coefficients(*x0, signal_s - keep * signal, out[0] if clip is None else keep, out[1], sigma, bound)
