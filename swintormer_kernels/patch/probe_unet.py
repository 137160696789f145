"""Whether a part of a U-Net computes what the ops compute: both run on random inputs and weights, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from swintormer_kernels.patch.probe import MARGIN, first_line, relative
from swintormer_kernels.patch.recognise import remove_hooks
from swintormer_kernels.registry import use_backend

_SIDES = (3, 5)  # of the probe: different, so that a transposition shows


def why_different(module: Any, kind: str, swap: Callable[[nn.Module], object]) -> str | None:
    """None if `module` and its swapped copy agree in output and gradient, else in words.

    Args:
        module: has the structure that `recognise_unet` asks for. Neither it nor any global state is changed.
        kind: "res block", "attention" or "upsampling".
        swap: makes a (copied) module compute through the ops.
    """
    device = next(module.parameters()).device
    if device.type == "meta":
        return "it is on the meta device and has no numbers to check; materialise it first, or pass verify=False"
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
        use_backend("reference"),
    ):
        try:
            theirs = copy.deepcopy(module).eval()
            remove_hooks(theirs)
            theirs.requires_grad_(True)
            _fill(theirs)
            ours = copy.deepcopy(theirs)
        except Exception as error:
            return f"it cannot be copied for the check ({first_line(error)})"
        swap(ours)
        inputs = _inputs(module, kind)
        try:
            single = _run(ours, inputs, torch.float32)
            exact, own = _run(ours, inputs, torch.float64), _run(theirs, inputs, torch.float64)
        except Exception as error:
            return f"its own forward fails on the probe in float64 ({first_line(error)})"
    if own is None:
        return "its own forward does not return one tensor"
    assert single is not None
    assert exact is not None
    worst = max(relative(a, b) for a, b in zip(own, exact, strict=True))
    allowed = MARGIN * max(relative(a, b) for a, b in zip(single, exact, strict=True))
    if worst <= max(allowed, torch.finfo(torch.float32).eps):
        return None
    return f"it computes something else: relative difference {worst:.1e}, where rounding explains {allowed:.1e}"


def _run(module: nn.Module, inputs: list[Tensor | None], dtype: torch.dtype) -> list[Tensor] | None:
    """Output, and the gradients of the inputs."""
    module.to(dtype)
    given = [None if x is None else x.to(dtype).requires_grad_() for x in inputs]
    leaves = [x for x in given if x is not None]
    y: Any = type(module).forward(module, *given)
    if not isinstance(y, Tensor):
        return None
    weight = torch.linspace(-1, 1, y.numel(), dtype=dtype, device=y.device).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


def _fill(module: nn.Module) -> None:
    """Random values for every parameter, so that none is 0 or 1 and hides what it multiplies."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def _inputs(module: Any, kind: str) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    like = next(module.parameters())

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like.device)

    if kind == "attention":
        channels = module.to_q.in_features
        # Tokens where there is no norm over an image: so transformer blocks call it.
        norm = getattr(module, "group_norm", None)
        return [random(2, channels, *_SIDES) if norm is not None else random(2, _SIDES[0] * _SIDES[1], channels)]
    if kind == "upsampling":
        return [random(2, module.conv.in_channels, *_SIDES)]
    x = random(2, module.norm1.num_channels, *_SIDES)
    projection = getattr(module, "time_emb_proj", None)
    return [x, None if projection is None else random(2, projection.in_features)]
