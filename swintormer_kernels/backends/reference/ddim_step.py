"""ddim_step in plain torch: the formula of Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16, line by line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ddim_step(
    z: Tensor,
    noise_pred: Tensor,
    alpha_bar_t: float,
    alpha_bar_s: float,
    eta: float,
    clip: float | None,
    noise: Tensor | None,
) -> Tensor:
    """See ops/ddim_step.py. Computes in float32 at least, and returns z's dtype."""
    latent, e = _widen(z), _widen(noise_pred)
    x0 = _predicted_x0(latent, e, alpha_bar_t)
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
        e = (latent - root(alpha_bar_t) * x0) / root(1 - alpha_bar_t)
    sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta)
    out = root(alpha_bar_s) * x0 + root(1 - alpha_bar_s - sigma**2) * e
    if noise is not None and eta > 0:
        out = out + sigma * _widen(noise)
    return out.to(z.dtype)


def ddim_step_backward(
    grad: Tensor,
    bounded: tuple[Tensor, Tensor, float] | None,
    alpha_bar_t: Any,
    alpha_bar_s: Any,
    eta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, noise_pred and noise.

    Args:
        grad: gradient of the result.
        bounded: (z, noise_pred, clip) of a step with a bound; without one the step is linear and does not need them.
        alpha_bar_t: float or 0-d tensor, `alpha_bar_s` too.
        alpha_bar_s: see there.
        eta: as in the forward.
    """
    sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta)
    from_x0, from_e = root(alpha_bar_s) * grad, root(1 - alpha_bar_s - sigma**2) * grad
    grad_z = torch.zeros_like(grad)
    if bounded is not None:
        # e' = (z - sqrt(a_t) x0) / sqrt(1 - a_t) takes noise_pred's place, and outside the bound x0 is constant.
        z, noise_pred, clip = bounded
        grad_z = from_e / root(1 - alpha_bar_t)
        inside = _predicted_x0(z, noise_pred, alpha_bar_t).abs() <= clip
        from_x0 = (from_x0 - root(alpha_bar_t) * grad_z) * inside
        from_e = torch.zeros_like(grad)
    grad_z = grad_z + from_x0 / root(alpha_bar_t)
    grad_noise_pred = from_e - from_x0 * (root(1 - alpha_bar_t) / root(alpha_bar_t))
    return grad_z, grad_noise_pred, sigma * grad


def ddim_sigma(alpha_bar_t: Any, alpha_bar_s: Any, eta: float) -> Any:
    """Standard deviation of the fresh noise, eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)."""
    return eta * root((1 - alpha_bar_s) / (1 - alpha_bar_t)) * root(1 - alpha_bar_t / alpha_bar_s)


def root(x: Any) -> Any:
    """Square root of a float or a tensor.

    Of |x|: rounding leaves about -1e-17 where 1 - a_s - sigma^2 is 0, and an inversion step (a_s < a_t, eta 0)
    multiplies the root of a negative number by 0.
    """
    return abs(x) ** 0.5


def _predicted_x0(z: Tensor, noise_pred: Tensor, alpha_bar_t: Any) -> Tensor:
    return (z - root(1 - alpha_bar_t) * noise_pred) / root(alpha_bar_t)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
