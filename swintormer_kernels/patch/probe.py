"""Whether a block computes what the op computes: both run on random inputs, with random weights, in float64.

The weights at hand would hide much: a fresh block has logit_scale ln 10, so no clamp acts, masked pairs weigh exp(-100)
whatever the mask is, and small activations never meet eps. So copies are filled with weights under which every term of
the formula moves the result, for any C, heads and window:

generic: pixels from 1e-3 to 3 in size (eps of the norm), q and k of size 1e-6 (how norms are floored), biases of
    logits of several units; in training mode, with gradients, on two windows one above the other.
masked: neighbours across the shift point opposite ways and k = -q, so that masked pairs win although 100 is taken off
    them, and logit_scale is above its clamp; in eval mode, on two windows side by side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swintormer_kernels.patch.recognise import remove_hooks
from swintormer_kernels.registry import use_backend

MARGIN = 4
"""How many times the reference's own float32 error a block may differ. Different code rounds differently: tables made
in float32 inside a float64 module alone give about 1x. A different formula gives 1e-3 and more, some 1000x."""

_UP, _DOWN = math.log(200), math.log(5)


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        shift: the shift under which the block agrees, or None if it does not.
        error: largest relative error of an output or a gradient, at that shift or at the best one.
        tolerance: the largest that was allowed.
        dtype: what the block itself was run in.
    """

    shift: int | None
    error: float
    tolerance: float
    dtype: torch.dtype


def compare(
    block: nn.Module, window: int, shifts: tuple[int, ...], swap: Callable[[nn.Module, int], None]
) -> Verdict | str:
    """Compare `block` with the op at each of `shifts`; a sentence if that is impossible.

    Args:
        block: has the structure that `recognise.why_not_block` asks for. Neither it nor any global state is changed.
        window, shifts: as found by `recognise.window_and_shifts`.
        swap: makes a (copied) block compute through the op, with the given shift.
    """
    device = next(block.parameters()).device
    if device.type == "meta":
        return "it is on the meta device and has no numbers to check; materialise it first, or pass verify=False"
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(cuda),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        try:
            theirs = copy.deepcopy(block)
            remove_hooks(theirs)
            theirs.requires_grad_(True)
            ours = {shift: copy.deepcopy(theirs) for shift in shifts}
        except Exception as error:
            return f"it cannot be copied for the check ({first_line(error)})"
        for shift, fused in ours.items():
            swap(fused, shift)
        found: Verdict | str = "unreachable"
        for dtype in (torch.float64, torch.float32):  # some code creates float32 tensors inside and refuses float64
            found = _compare_in(dtype, theirs, ours, window)
            if not isinstance(found, str):
                break
        return found


def _compare_in(dtype: torch.dtype, theirs: nn.Module, ours: dict[int, nn.Module], window: int) -> Verdict | str:
    worst = dict.fromkeys(ours, 0.0)
    allowed = dict.fromkeys(ours, torch.finfo(torch.float32).eps)
    for masked in (False, True):
        for module in (theirs, *ours.values()):
            module.float()
            _fill(module, masked)
        x, grad = _input(theirs, window, masked)
        state = _random_state(x)
        try:
            results = _run(theirs, x, grad, dtype)
        except Exception as error:
            return f"its own forward fails on a {tuple(x.shape)} probe in {dtype} ({first_line(error)})"
        if results is None:
            return f"its own forward does not return one tensor of the shape of its input {tuple(x.shape)}"
        if any(not torch.equal(a, b) for a, b in zip(state, _random_state(x), strict=True)):
            return "it draws random numbers while training, and the op does not"
        for shift, fused in ours.items():
            with use_backend("reference"):
                rounded = _run(fused, x, grad, torch.float32)
                exact = _run(fused, x, grad, torch.float64)
            assert exact is not None
            assert rounded is not None
            pairs = zip(results, rounded, exact, strict=True)
            for own, single, golden in pairs:
                worst[shift] = max(worst[shift], relative(own, golden))
                allowed[shift] = max(allowed[shift], MARGIN * relative(single, golden))
    best = min(worst, key=lambda shift: worst[shift])
    return Verdict(best if worst[best] <= allowed[best] else None, worst[best], allowed[best], dtype)


def _run(module: nn.Module, x: Tensor, grad: Tensor | None, dtype: torch.dtype) -> list[Tensor] | None:
    """Output and, given `grad`, gradients of input and parameters; training mode with `grad`, eval mode without."""
    module.to(dtype).train(grad is not None)
    x = x.to(dtype).requires_grad_()
    y: Any = type(module).forward(module, x)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    if grad is None:
        return [y.detach()]
    wanted = [x, *module.parameters()]
    return [y.detach(), *torch.autograd.grad((y * grad.to(y.dtype)).sum(), wanted)]


def relative(value: Tensor, golden: Tensor) -> float:
    """||value - golden|| / ||golden||; infinite where it is no number."""
    error = ((value.double() - golden).norm() / golden.norm()).item()
    return error if math.isfinite(error) else math.inf


def _random_state(x: Tensor) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(x.device)] if x.is_cuda else states


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---- weights and inputs that hide nothing ----------------------------------------------------------------------------


def _fill(block: Any, masked: bool) -> None:
    """Give every parameter of a released block random float32 values; the same for every copy."""
    generator = torch.Generator().manual_seed(int(masked))

    def random(like: Tensor, scale: float) -> Tensor:
        return torch.randn(like.shape, generator=generator, device="cpu") * scale

    heads = block.attn.logit_scale.shape[0]
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            fan_in = parameter[0].numel()
            parameter.copy_(random(parameter, 0.1 if parameter.ndim == 1 else fan_in**-0.5))
            if name.endswith("body.weight"):
                parameter.add_(1)
            elif name.endswith("cpb_mlp.2.weight"):
                parameter.mul_(4)
            elif name.endswith("logit_scale"):
                spread = torch.full((heads,), _UP) if masked else torch.linspace(_DOWN, math.log(50), heads)
                parameter.copy_(spread.reshape(heads, 1, 1))
        _shape_queries(block.attn, masked)


def _shape_queries(attn: Any, masked: bool) -> None:
    """Make q and k small; or, for the masked probe, k = -q."""
    for parameter in (attn.qkv.weight, attn.qkv.bias, attn.qkv_dwconv.weight, attn.qkv_dwconv.bias):
        if parameter is None:
            continue
        window_q, window_k, _, channel_q, channel_k, _ = parameter.unflatten(0, (6, -1)).unbind(0)
        if masked:
            window_k.copy_(window_q if parameter is attn.qkv_dwconv.weight else -window_q)
        elif parameter is not attn.qkv_dwconv.weight:
            for part in (window_q, window_k, channel_q, channel_k):
                part.mul_(1e-6)


def _input(block: Any, window: int, masked: bool) -> tuple[Tensor, Tensor | None]:
    """Probe input (1, C, H, W) and, for the generic probe, the gradient that comes back to its output."""
    generator = torch.Generator().manual_seed(2)
    channels = block.attn.project_out.weight.shape[0]
    device = block.attn.logit_scale.device
    if masked:
        # The two halves of each side have opposite signs: they meet where a rolled window wraps around.
        rows = torch.where(torch.arange(window) < window / 2, -1.0, 1.0)
        columns = torch.where(torch.arange(2 * window) < window, -1.0, 1.0)
        pattern = torch.randn(1, channels, 1, 1, generator=generator) * rows[:, None] * columns
        return (pattern + 0.3 * torch.randn(1, channels, window, 2 * window, generator=generator)).to(device), None
    shape = (1, channels, 2 * window, window)
    sizes = 10 ** (3.5 * torch.rand(1, 1, *shape[2:], generator=generator) - 3)
    x, grad = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return (x * sizes).to(device), grad.to(device)
