"""Swap known blocks of any model in place, and back.

    report = sk.optimize(model)   # which parts now run through the ops, which stay and why, and on which backend
    sk.restore(model)

Known are the released Swintormer block, and of diffusion U-Nets and their autoencoders (diffusers' names) res blocks,
self-attention, steps up, and the norm and SiLU that end them (`unet.py`).

A swapped block is the same object with the same parts, parameters, hooks and attributes: only its class becomes a
subclass of its own whose forward calls the op (as torch's parametrizations and fully_shard do it). So wrappers,
optimizers, state dicts and other references to it go on working, and so do `isinstance`, `copy.deepcopy` and pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from swintormer_kernels.nn import (
    Block,
    attention_weights,
    ffn_weights,
    log_spaced_coordinates,
    position_bias,
    remade_coordinates,
)
from swintormer_kernels.ops.swda_block import swda_block
from swintormer_kernels.patch import diffusers as unet
from swintormer_kernels.patch import probe, recognise, recognise_unet
from swintormer_kernels.patch.swap import SwappedModule, swapped_class
from swintormer_kernels.records import AttentionWeights, FFNWeights
from swintormer_kernels.registry import Explanation, explain

_COORDINATES = "_swda_coordinates"


@dataclass(frozen=True)
class Swapped:
    """A swapped block: its sizes, and `explanation` of the backend that `swda_block` takes for it.

    The backend is the one for an input of 8 x 8 windows, batch 1, in the block's dtype, in the grad mode of now.
    """

    channels: int
    heads: int
    hidden: int
    window: int
    shift: int
    explanation: Explanation

    def __str__(self) -> str:
        sizes = f"C {self.channels}, heads {self.heads}, hidden {self.hidden}, window {self.window}"
        return f"{sizes}, shift {self.shift} -> {self.explanation.backend}"


@dataclass(frozen=True)
class Report:
    """What `optimize` did; `str()` tells it to a person. All names are as in `model.named_modules()`.

    Attributes:
        swapped: name -> what the block is and which backend it gets.
        swapped_before: the same for blocks that an earlier call swapped.
        kept: name -> why a module that resembles a released one stays as it is.
        ours: names of blocks of this package, which need no swap.
    """

    swapped: dict[str, Swapped | unet.SwappedPart] = field(default_factory=dict)
    swapped_before: dict[str, Swapped | unet.SwappedPart] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    ours: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        groups = (
            ("swapped", self.swapped),
            ("swapped before", self.swapped_before),
            ("kept", self.kept),
            ("of this package already, which needs no swap", dict.fromkeys(self.ours, "")),
        )
        lines = []
        if not any(group for _, group in groups):
            return (
                "nothing to swap: the model holds no attention, feed-forward part or block of the released kind, "
                "and no res block, attention or norm and SiLU of a diffusion U-Net"
            )
        if not self.swapped:
            lines.append("nothing swapped")
        for title, group in groups:
            if group:
                lines.append(f"{len(group)} {title}:")
                lines += [f"  {names}{text and '  '}{text}" for names, text in _grouped(group)]
        parts = (*self.swapped.values(), *self.swapped_before.values())
        explanations = {str(part.explanation) for part in parts if part.explanation is not None}
        return "\n".join([*lines, *sorted(explanations)])


def _grouped(entries: Mapping[str, object]) -> list[tuple[str, str]]:
    """Entries of one parent that say the same in one line: ("latent.{0,2,4,6}", text)."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, text in entries.items():
        parent, dot, last = name.rpartition(".")
        groups.setdefault((parent + dot, str(text)), []).append(last)
    return [
        (f"{parent}{{{','.join(lasts)}}}" if len(lasts) > 1 else (parent + lasts[0] or "the model itself"), text)
        for (parent, text), lasts in groups.items()
    ]


def optimize(model: nn.Module, *, verify: bool = True) -> Report:
    """Let every known part of `model` compute through the ops, in place.

    Released Swintormer blocks go through `swda_block`; res blocks of diffusion U-Nets through `res_block` on a CPU and
    through two `norm_silu_conv3x3` elsewhere, their steps up through `upsample_conv3x3`, their self-attention through
    one product and scaled_dot_product_attention; `conv_norm_out`, `conv_act` and `conv_out` through one
    `norm_silu_conv3x3`, or the first two through `group_norm_silu`. A whole network of diffusers knows its dtype
    afterwards without the walk over all modules that diffusers does in each step.

    Parts are recognised by structure, also inside DataParallel, torch.compile and checkpoint wrappers. Parameters,
    state dict, hooks, mode, device and dtype stay as they are. Calls that the op does not take (further arguments,
    sides that are not multiples of the window, dropout while training, hooks or other modules put on inner parts later)
    go to the part's own forward, as before. Running it again changes nothing. Weights are packed once and packed again
    when their version counter moves; after a write through `parameter.data`, which moves none, call
    `swintormer_kernels.forget(model)`.

    Args:
        model: any module; a block itself, too.
        verify: before the swap run a copy of each kind of part and compare outputs and gradients with the op
            (`patch.probe`; 3 s of one core for the released network). Without it parts are swapped for
            their structure alone, and kept where that leaves a doubt.

    Returns:
        What was swapped, what was kept and why; `print` it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize takes a torch.nn.Module, found {type(model).__name__}")
    report = Report()
    plans: dict[str, _Plan] = {}
    for name, module, kind in recognise.candidates(model):
        if isinstance(module, Block):
            report.ours.append(name)
        elif isinstance(module, SwappedBlock):
            report.swapped_before[name] = _describe(module)
        elif kind != "block":
            report.kept[name] = f"{kind} of this kind alone: the op includes the norm before it and the residual"
        else:
            plan = _plan(module, verify, plans.values())
            if isinstance(plan, str):
                report.kept[name] = plan
            else:
                plans[name] = plan
    for name, plan in plans.items():
        _swap(plan.block, plan.window, plan.shift)
        report.swapped[name] = _describe(plan.block)
    _optimize_unet(model, verify, report)
    return report


def _optimize_unet(model: nn.Module, verify: bool, report: Report) -> None:
    plans: list[unet.Plan] = []
    for name, module, kind in recognise_unet.candidates(model):
        before = unet.already(name, module, kind)
        if before is not None:
            report.swapped_before[before[0]] = before[1]
            continue
        plan = unet.plan(name, module, kind, verify, plans)
        if isinstance(plan, str):
            report.kept[name] = f"{kind}: {plan}"
        else:
            plans.append(plan)
    for plan in plans:
        report.swapped[plan.name] = plan.swap()


def restore(model: nn.Module) -> list[str]:
    """Undo `optimize`: every swapped block computes through its own class again, with the parameters of now.

    Returns:
        Names of the modules whose class was swapped.

    Raises:
        RuntimeError: something else changed the class of a swapped module since; nothing is restored then.
    """
    swapped = {name: module for name, module in model.named_modules() if isinstance(module, SwappedModule)}
    for name, module in swapped.items():
        if "_base" not in vars(type(module)):
            raise RuntimeError(
                f"{name or 'the model'} became a {type(module).__name__} after it was swapped; undo that first"
            )
    for module in swapped.values():
        module.unswap()
    return list(swapped)


# ---- swapped blocks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Swap:
    window: int
    shift: int
    parts: tuple[type, ...]  # classes of the inner modules whose forward the op replaces


class SwappedBlock(SwappedModule):
    """A released block through `swda_block`."""

    _swda: _Swap
    norm1: Any  # parts are of the block's own classes
    attn: Any
    norm2: Any
    ffn: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or not self._op_takes(args[0]):
            return super().forward(*args, **kwargs)
        return swda_block(args[0], *self._weights(), self._swda.window, self._swda.shift)

    def _op_takes(self, x: Any) -> bool:
        """Whether the op computes what the block's own forward would, with this input and the parts of now."""
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != self.attn.project_out.weight.shape[0]:
            return False
        if x.shape[2] % self._swda.window or x.shape[3] % self._swda.window:
            return False
        parts = _parts(self)
        return tuple(map(type, parts)) == self._swda.parts and not any(map(recognise.has_hooks, parts))

    def _weights(self) -> tuple[AttentionWeights, FFNWeights]:
        bias_table = position_bias(self.attn.cpb_mlp, getattr(self, _COORDINATES))
        return attention_weights(self.norm1, self.attn, bias_table), ffn_weights(self.norm2, self.ffn)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SwappedBlock:
        before = getattr(self, _COORDINATES)
        super()._apply(fn, recurse)
        setattr(self, _COORDINATES, remade_coordinates(self._swda.window, before, getattr(self, _COORDINATES)))
        return self

    def forget_swap(self) -> None:
        delattr(self, _COORDINATES)
        del self._swda


def _parts(block: Any) -> tuple[Any, ...]:
    """The inner modules whose forward the op replaces or skips; None for one that somebody took away since."""
    norm1, attn, norm2, ffn = block.norm1, block.attn, block.norm2, block.ffn
    leaves = (
        *(getattr(norm1, "body", None), getattr(norm2, "body", None)),
        *(getattr(attn, name, None) for name in ("qkv", "qkv_dwconv", "project_out")),
        *(getattr(ffn, name, None) for name in ("project_in", "project_out")),
    )
    return norm1, attn, norm2, ffn, *leaves, *attn.cpb_mlp.modules()


def _swap(block: Any, window: int, shift: int) -> None:
    like = block.attn.cpb_mlp[0].weight
    with torch.inference_mode(False):  # a buffer made in inference mode could not be trained with
        coordinates = log_spaced_coordinates(window).to(device=like.device, dtype=like.dtype)
    block.__class__ = swapped_class(SwappedBlock, type(block))
    block._swda = _Swap(window, shift, tuple(map(type, _parts(block))))
    block.register_buffer(_COORDINATES, coordinates, persistent=False)


@dataclass(frozen=True)
class _Plan:
    block: nn.Module
    window: int
    shift: int


def _plan(block: nn.Module, verify: bool, plans: Iterable[_Plan]) -> _Plan | str:
    """How to swap `block`, or why not. A block that runs the same code as a planned one needs no check of its own."""
    reason = recognise.why_not_block(block)
    if reason is not None:
        return reason
    found = recognise.window_and_shifts(block)
    if isinstance(found, str):
        return found
    same = (plan for plan in plans if recognise.runs_the_same_code(plan.block, block))
    plan = next(same, None)
    if plan is not None:
        return _Plan(block, plan.window, plan.shift)
    return _checked(block, *found) if verify else _trusted(block, *found)


def _trusted(block: nn.Module, window: int, shifts: tuple[int, ...]) -> _Plan | str:
    """The plan that the structure alone allows."""
    if len(shifts) > 1:
        return "its shift stands in no attribute, and only the check (verify=True) can find it"
    extra = recognise.extra_parts(block)
    if extra:
        return f"{extra[0]} has no place in it; the check (verify=True) can tell if it matters"
    return _Plan(block, window, shifts[0])


def _checked(block: nn.Module, window: int, shifts: tuple[int, ...]) -> _Plan | str:
    """The plan under which the op computes what the block computes."""
    verdict = probe.compare(block, window, shifts, lambda copied, shift: _swap(copied, window, shift))
    if isinstance(verdict, str):
        return verdict
    if verdict.shift is None:
        return (
            f"it computes something else: relative difference {verdict.error:.1e} in {verdict.dtype}, "
            f"where rounding explains {verdict.tolerance:.1e}"
        )
    return _Plan(block, window, verdict.shift)


def _describe(block: Any) -> Swapped:
    """Sizes and backend of a swapped block."""
    window, shift = block._swda.window, block._swda.shift
    attention, ffn = block._weights()
    channels, hidden = ffn.project_out.shape[:2]
    x = attention.qkv.new_empty(()).expand(1, channels, 8 * window, 8 * window)  # one number, whatever the size
    explanation = explain(swda_block, x, attention, ffn, window, shift)
    return Swapped(channels, len(attention.logit_scale), hidden, window, shift, explanation)
