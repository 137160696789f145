"""ddim_step in plain torch: the formula of Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16, line by line."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swintormer_kernels.records import Prediction


def ddim_step(
    z: Tensor,
    noise_pred: Tensor,
    alpha_bar_t: float,
    alpha_bar_s: float,
    eta: float,
    clip: float | None,
    noise: Tensor | None,
    prediction: Prediction = Prediction(),  # noqa: B008  # it cannot change
) -> Tensor:
    """See ops/ddim_step.py. Computes in float32 or float64 and returns z's dtype."""
    latent, predicted = _widen(z), guided(_widen(noise_pred), prediction)
    x0, e = x0_and_noise(latent, predicted, alpha_bar_t, prediction.kind)
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
        e = (latent - root(alpha_bar_t) * x0) / root(1 - alpha_bar_t)
    sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta)
    out = root(alpha_bar_s) * x0 + root(1 - alpha_bar_s - sigma**2) * e
    if noise is not None and eta > 0:
        out = out + sigma * _widen(noise)
    return out.to(z.dtype)


def guided(conditional: Tensor, prediction: Prediction) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): u + g (c - u), or c without u."""
    if prediction.unconditional is None:
        return conditional
    unconditional = _widen(prediction.unconditional)
    return unconditional + prediction.guidance_scale * (conditional - unconditional)


def x0_and_noise(z: Tensor, predicted: Tensor, alpha_bar_t: Any, kind: str) -> tuple[Tensor, Tensor]:
    """x0 and e of z = sqrt(a_t) x0 + sqrt(1 - a_t) e, from e, x0, or v = sqrt(a_t) e - sqrt(1 - a_t) x0."""
    signal, spread = root(alpha_bar_t), root(1 - alpha_bar_t)
    if kind == "epsilon":
        return (z - spread * predicted) / signal, predicted
    if kind == "sample":
        return predicted, (z - signal * predicted) / spread
    return signal * z - spread * predicted, signal * predicted + spread * z


def ddim_step_backward(
    grad: Tensor,
    bounded: tuple[Tensor, Tensor, float] | None,
    alpha_bar_t: Any,
    alpha_bar_s: Any,
    eta: float,
    kind: str = "epsilon",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, of the (guided) prediction and of noise.

    Args:
        grad: gradient of the result.
        bounded: (z, prediction, clip) of a step with `clip`; None without, because the step is then linear.
        alpha_bar_t: float or 0-d tensor, as in the forward.
        alpha_bar_s: float or 0-d tensor, as in the forward.
        eta: as in the forward.
        kind: kind of the prediction, as in `Prediction`.
    """
    signal, spread = root(alpha_bar_t), root(1 - alpha_bar_t)
    sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta)
    from_x0, from_e = root(alpha_bar_s) * grad, root(1 - alpha_bar_s - sigma**2) * grad
    grad_z = torch.zeros_like(grad)
    if bounded is not None:
        # e is replaced by e' = (z - sqrt(a_t) x0) / sqrt(1 - a_t), and x0 is constant outside the bound.
        z, predicted, clip = bounded
        grad_z = from_e / spread
        inside = x0_and_noise(z, predicted, alpha_bar_t, kind)[0].abs() <= clip
        from_x0 = (from_x0 - signal * grad_z) * inside
        from_e = torch.zeros_like(grad)
    if kind == "epsilon":
        return grad_z + from_x0 / signal, from_e - from_x0 * (spread / signal), sigma * grad
    if kind == "sample":
        return grad_z + from_e / spread, from_x0 - from_e * (signal / spread), sigma * grad
    return grad_z + signal * from_x0 + spread * from_e, signal * from_e - spread * from_x0, sigma * grad


def ddim_sigma(alpha_bar_t: Any, alpha_bar_s: Any, eta: float) -> Any:
    """Standard deviation of the fresh noise, eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)."""
    return eta * root((1 - alpha_bar_s) / (1 - alpha_bar_t)) * root(1 - alpha_bar_t / alpha_bar_s)


def root(x: Any) -> Any:
    """Square root of a float or a tensor.

    Takes |x|, because rounding gives about -1e-17 where 1 - a_s - sigma^2 is 0, and because an inversion step (a_s <
    a_t, eta 0) multiplies the root of a negative number by 0.
    """
    return abs(x) ** 0.5


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Coefficients(NamedTuple):
    """`DdimStepCoefficients` of csrc/denoiser/ddim_step.h, without the guidance. The formulas are there."""

    x0_from_z: float
    x0_from_pred: float
    out_from_x0: float
    out_from_z: float
    out_from_pred: float
    out_from_fresh: float
    clip: float


def coefficients(kind: str, alpha_bar_t: float, alpha_bar_s: float, eta: float, clip: float | None) -> Coefficients:
    """The coefficients of one step, computed in float64; clip is infinity without a bound."""
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


def with_strides_of(out: Tensor, tensor: Tensor | None) -> Tensor | None:
    """The tensor, or a copy with the strides of `out`, which is contiguous in some order of dimensions.

    For backends that process a latent in the order of its memory.
    """
    if tensor is None or tensor.stride() == out.stride():
        return tensor
    return torch.empty_like(out, dtype=tensor.dtype).copy_(tensor)
