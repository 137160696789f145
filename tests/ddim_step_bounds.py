"""ddim_step in float64 and the bound of its rounding, which its tests share."""

import math

import torch

from swintormer_kernels.backends.reference.ddim_step import ddim_sigma
from swintormer_kernels.ops.ddim_step import ddim_step
from swintormer_kernels.records import Prediction
from swintormer_kernels.registry import use_backend

SCHEDULE = {"alpha_bar_t": 0.25, "alpha_bar_s": 0.4}
EPS = torch.finfo(torch.float32).eps


def double(x):
    return x.double() if isinstance(x, torch.Tensor) else x


def exact(z, noise_pred, noise=None, prediction=Prediction(), **options):  # noqa: B008
    """The reference in float64."""
    prediction = prediction._replace(unconditional=double(prediction.unconditional))
    with use_backend("reference"):
        return ddim_step(double(z), double(noise_pred), noise=double(noise), prediction=prediction, **options)


def sizes_of_terms(z, noise_pred, a, b, prediction):
    """|z|, and the largest that x0 and e and what they are put together from can be."""
    z, p = double(z).abs(), double(noise_pred).abs()
    if prediction.unconditional is not None:
        u = double(prediction.unconditional).abs()
        p = u + abs(prediction.guidance_scale) * (p + u)
    if prediction.kind == "epsilon":
        return z, (z + b * p) / a, p
    return (z, p, (z + a * p) / b) if prediction.kind == "sample" else (z, a * z + b * p, a * p + b * z)


def rounding(z, noise_pred, *, alpha_bar_t, alpha_bar_s, eta=0.0, clip=None, noise=None, **options):
    """Bound of the rounding error of one element: 8 operations of half an ulp, each of the largest term's size.

    Guidance is 3 more. `options`: the prediction, and the dtype that is rounded to, float32 by default.
    """
    prediction, dtype = options.get("prediction", Prediction()), options.get("dtype", torch.float32)
    eps = torch.finfo(dtype).eps
    a, b = math.sqrt(alpha_bar_t), math.sqrt(1 - alpha_bar_t)
    sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta)
    d = math.sqrt(abs(1 - alpha_bar_s - sigma**2))
    z, x0, implied = sizes_of_terms(z, noise_pred, a, b, prediction)
    if clip is not None:
        implied = (z + a * x0) / b
    # d itself is the root of a difference in float64, whose rounding weighs more the smaller d is.
    d_error = torch.finfo(torch.float64).eps / d if d else 0.0
    size = math.sqrt(alpha_bar_s) * x0 + (d + d_error / eps) * implied
    if noise is not None and eta > 0:
        size = size + sigma * double(noise).abs()
    return (8 if prediction.unconditional is None else 11) * eps / 2 * size


def assert_exact_up_to_rounding(out, z, noise_pred, **options):
    excess = (double(out) - exact(z, noise_pred, **options)).abs() - rounding(z, noise_pred, **options)
    assert out.shape == z.shape
    assert not out.isnan().any(), "an element that nobody wrote"
    assert (excess <= 0).all(), f"beyond the rounding bound by {excess.max().item():.3g}"


def latents(shape, seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]
