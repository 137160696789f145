"""ddim_step: one update of a latent by the DDIM scheduler (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

With a_t and a_s the cumulative products alpha-bar at t and at the earlier s, noise prediction e, and n ~ N(0, 1):

    x0    = (z - sqrt(1 - a_t) e) / sqrt(a_t), clamped to [-clip, clip] if `clip` is given
    sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
    out   = sqrt(a_s) x0 + sqrt(1 - a_s - sigma^2) e' + sigma n

e' is e, or with `clip` the noise that follows from the clamped x0, (z - sqrt(a_t) x0) / sqrt(1 - a_t). A network may
predict x0 or v = sqrt(a_t) e - sqrt(1 - a_t) x0 (Salimans and Ho 2022, arXiv 2202.00512) instead of e; z then gives x0
and e. With an unconditional prediction, classifier-free guidance is applied first (Ho and Salimans 2022, arXiv
2207.12598). FlopCounterMode counts no elementwise ops, so no FLOP formula is registered; `cost()` has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swintormer_kernels.backends.cpu.layout import float32_on_cpu
from swintormer_kernels.backends.cuda.layout import half_on_gpu
from swintormer_kernels.backends.reference.ddim_step import ddim_step as _reference
from swintormer_kernels.backends.reference.ddim_step import ddim_step_backward, guided
from swintormer_kernels.backends.triton.layout import MOST_PIXELS, dense_on_gpu
from swintormer_kernels.records import Prediction
from swintormer_kernels.registry import Op
from swintormer_kernels.torch_op import Cost, gradients_wanted

PREDICTIONS = ("epsilon", "sample", "v_prediction")
_NOISE = Prediction()


def _cpu_serves(
    z: Tensor, noise_pred: Tensor, *, noise: Tensor | None = None, prediction: Prediction = _NOISE, **_: Any
) -> str | None:
    return float32_on_cpu(z, noise_pred, noise, prediction.unconditional)


def _triton_serves(
    z: Tensor, noise_pred: Tensor, *, noise: Tensor | None = None, prediction: Prediction = _NOISE, **_: Any
) -> str | None:
    if z.numel() > MOST_PIXELS:
        return f"the triton backend takes at most {MOST_PIXELS} elements, found {z.numel()}"
    return dense_on_gpu(z, noise_pred, noise, prediction.unconditional)


def _cuda_serves(
    z: Tensor, noise_pred: Tensor, *, noise: Tensor | None = None, prediction: Prediction = _NOISE, **_: Any
) -> str | None:
    return half_on_gpu("ddim_step", z, noise_pred, noise, prediction.unconditional)


def _cpu_slower(
    z: Tensor, noise_pred: Tensor, *, noise: Tensor | None = None, prediction: Prediction = _NOISE, **_: Any
) -> str | None:
    # bench/bench_ops.py, two threads, reference / cpu: 4096 elements 0.6 to 0.8, 118000 1.5 to 1.7; forward and
    # backward 118000 0.8 to 0.9, 1.5 M 1.2.
    tensors = (z, noise_pred, noise, prediction.unconditional)
    wanted = gradients_wanted(*tensors)
    if z.numel() < (1 << 20 if wanted else 1 << 16):
        return f"{z.numel()} elements take less time than a call of the cpu backend" + " with gradients" * wanted
    return None


OP = Op(
    "ddim_step",
    serves={"cpu": _cpu_serves, "triton": _triton_serves, "cuda": _cuda_serves},
    slower={"cpu": _cpu_slower},
)


@OP.public
def ddim_step(
    z: Tensor,
    noise_pred: Tensor,
    *,
    alpha_bar_t: float,
    alpha_bar_s: float,
    eta: float = 0.0,
    clip: float | None = None,
    noise: Tensor | None = None,
    prediction: Prediction = _NOISE,
) -> Tensor:
    """One DDIM update z_t -> z_s.

    Args:
        z: latent at t, any shape and strides.
        noise_pred: prediction of the network, by default the noise e; z's shape and device.
        alpha_bar_t: cumulative product of 1 - beta up to t, in (0, 1).
        alpha_bar_s: the same at s, in (0, 1]. Below `alpha_bar_t` it is an inversion step, which requires eta 0.
        eta: scale of the added noise, 0 (deterministic) to 1 (as in DDPM).
        clip: upper bound of |x0|, above 0; None for no bound.
        noise: n ~ N(0, 1), z's shape and device; required if eta > 0, not read if eta is 0.
        prediction: `kind` of the prediction, "epsilon" (e), "sample" (x0) or "v_prediction" (v); `unconditional`, the
            prediction without condition, z's shape and device; `guidance_scale`, the weight of their difference.

    Returns:
        Latent at s, with z's shape and dtype; float16 and bfloat16 are computed in float32. Gradients exist for z, both
        predictions and noise.

    Raises:
        ValueError: an argument is out of range or has another shape, device or dtype.
        BackendError: the backend requested by `use_backend` cannot serve.
    """
    check_input(z, noise_pred, alpha_bar_t, alpha_bar_s, eta, clip, noise, prediction)
    backend = OP.select(z, noise_pred, noise=noise, prediction=prediction)
    if backend == "reference":
        return _reference(z, noise_pred, alpha_bar_t, alpha_bar_s, eta, clip, noise, prediction)
    kind, unconditional, guidance_scale = prediction
    schedule = _schedule(alpha_bar_t, alpha_bar_s)
    return torch.ops.swintormer.ddim_step(
        z, noise_pred, schedule, eta, clip, noise, unconditional, guidance_scale, kind, backend
    )


def check_input(
    z: Tensor,
    noise_pred: Tensor,
    alpha_bar_t: float,
    alpha_bar_s: float,
    eta: float,
    clip: float | None,
    noise: Tensor | None,
    prediction: Prediction = _NOISE,
) -> None:
    """Raises ValueError if `ddim_step` does not accept these arguments."""
    tensors = {"z": z, "noise_pred": noise_pred, "noise": noise, "unconditional": prediction.unconditional}
    if prediction.kind not in PREDICTIONS:
        raise ValueError(f"prediction.kind must be one of {', '.join(PREDICTIONS)}, found {prediction.kind!r}")
    for name, x in tensors.items():
        if x is None:
            continue
        if x.shape != z.shape or x.device != z.device:
            raise ValueError(
                f"{name} must have z's shape {tuple(z.shape)} and device {z.device}, "
                f"found {tuple(x.shape)} on {x.device}"
            )
        if not x.dtype.is_floating_point:
            raise ValueError(f"{name} must be a floating point tensor, found {x.dtype}")
    if not 0 < alpha_bar_t < 1:
        raise ValueError(f"alpha_bar_t must lie strictly between 0 and 1, found {alpha_bar_t}")
    if not 0 < alpha_bar_s <= 1:
        raise ValueError(f"alpha_bar_s must be above 0 and at most 1, found {alpha_bar_s}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], found {eta}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, or None for no bound, found {clip}")
    if eta > 0:
        if noise is None:
            raise ValueError(f"eta = {eta} adds fresh noise; pass `noise`, for example torch.randn_like(z), or eta=0")
        if alpha_bar_s < alpha_bar_t:
            raise ValueError(
                f"an inversion step (alpha_bar_s {alpha_bar_s} < alpha_bar_t {alpha_bar_t}) adds no noise; use eta=0"
            )


# ---- custom op -------------------------------------------------------------------------------------------------------


# torch.library.define and not torch.library.custom_op: a call without gradients costs 20 us instead of 30.
NAME = "swintormer::ddim_step"
torch.library.define(
    NAME,
    "(Tensor z, Tensor noise_pred, Tensor schedule, float eta, float? clip, Tensor? noise, Tensor? unconditional, "
    "float guidance_scale, str kind, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _schedule(alpha_bar_t: float, alpha_bar_s: float) -> Tensor:
    """(alpha_bar_t, alpha_bar_s) in float64 on the CPU.

    The numbers that change in every step are passed in a tensor, because torch.compile makes a graph for each value of
    a float argument of a custom op and gives up after eight.
    """
    if not torch.compiler.is_compiling():
        return torch.tensor([alpha_bar_t, alpha_bar_s], dtype=torch.float64, device="cpu")
    # Inductor (torch 2.13) compiles the values into the graph unless the tensor is computed by a product.
    one = torch.ones(1, dtype=torch.float64, device="cpu")
    return torch.cat([one * alpha_bar_t, one * alpha_bar_s])


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _run(z: Tensor, noise_pred: Tensor, schedule: Tensor, *rest: Any) -> Tensor:
    eta, clip, noise, unconditional, guidance_scale, kind, backend = rest
    prediction = Prediction(kind, unconditional, guidance_scale)
    alpha_bar_t, alpha_bar_s = schedule.tolist()
    return OP.implementation(backend)(z, noise_pred, alpha_bar_t, alpha_bar_s, eta, clip, noise, prediction)


@torch.library.register_fake(NAME)
def _fake(z: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, noise_pred, schedule, ctx.eta, ctx.clip, _, unconditional, ctx.guidance_scale, ctx.kind, _ = inputs
    bounded = (z, noise_pred, unconditional) if ctx.clip is not None else ()
    ctx.guided = unconditional is not None
    ctx.save_for_backward(schedule, *bounded)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    schedule, *saved = ctx.saved_tensors
    bounded = None
    if saved:
        z, noise_pred, unconditional = saved
        predicted = guided(noise_pred, Prediction(ctx.kind, unconditional, ctx.guidance_scale))
        bounded = z, predicted, ctx.clip
    alpha_bar_t, alpha_bar_s = schedule.unbind()
    of_z, of_pred, of_noise = ddim_step_backward(grad, bounded, alpha_bar_t, alpha_bar_s, ctx.eta, ctx.kind)
    share = ctx.guidance_scale if ctx.guided else 1.0
    found = {0: lambda: of_z, 1: lambda: share * of_pred, 5: lambda: of_noise, 6: lambda: (1 - share) * of_pred}
    return tuple(found[i]() if i in found and need else None for i, need in enumerate(ctx.needs_input_grad))


torch.library.register_autograd(NAME, _backward, setup_context=_setup_context)


def cost(
    z: Tensor,
    noise_pred: Tensor,
    *,
    eta: float = 0.0,
    clip: float | None = None,
    prediction: Prediction = _NOISE,
    **_: Any,
) -> Cost:
    """Work of `ddim_step`: 2 multiply-accumulates per element, 2 more with `clip`, 1 each for noise and guidance."""
    extra = (eta > 0) + (prediction.unconditional is not None)
    macs = 2 + 2 * (clip is not None) + extra
    return Cost(macs * z.numel(), (3 + extra) * z.numel() * z.element_size())
