"""The ops in other people's models: known parts are swapped in place, and back.

    report = sk.optimize(model)   # which parts now run through the ops, which stay and why, and on which backend
    sk.restore(model)

Known are the released Swintormer block (`released.py`) and, in diffusers' U-Nets and autoencoders, ResNet blocks,
self-attention, upsample layers, and the norm and SiLU that end a network (`diffusers.py`).

A swapped part is the same object with the same parts, parameters, hooks and attributes: only its class becomes a
subclass of its own whose forward calls the op (as torch's parametrizations and fully_shard do it). So wrappers,
optimizers, state dicts and other references to it go on working, and so do `isinstance`, `copy.deepcopy` and pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from swintormer_kernels.patch import diffusers, released
from swintormer_kernels.patch.swap import SwappedModule

__all__ = ["Report", "optimize", "restore", "verify"]


@dataclass(frozen=True)
class Report:
    """What `optimize` did; `str()` tells it to a person. All names are as in `model.named_modules()`.

    Attributes:
        swapped: name -> what the block is and which backend it gets.
        swapped_before: the same for blocks that an earlier call swapped.
        kept: name -> why a module that resembles a released one stays as it is.
        ours: names of blocks of this package, which need no swap.
        difference: what `verify` found for the example, or None where no example was given.
    """

    swapped: dict[str, released.Swapped | diffusers.SwappedPart] = field(default_factory=dict)
    swapped_before: dict[str, released.Swapped | diffusers.SwappedPart] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    ours: list[str] = field(default_factory=list)
    difference: float | None = None

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
                "and no ResNet block, attention, upsample or norm and SiLU of diffusers' networks"
            )
        if not self.swapped:
            lines.append("nothing swapped")
        for title, group in groups:
            if group:
                lines.append(f"{len(group)} {title}:")
                lines += [f"  {names}{text and '  '}{text}" for names, text in _grouped(group)]
        parts = (*self.swapped.values(), *self.swapped_before.values())
        explanations = {str(part.explanation) for part in parts if part.explanation is not None}
        if self.difference is not None:
            lines.append(f"largest relative difference on the example: {self.difference:.1e}")
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


def optimize(model: nn.Module, *, verify: Tensor | Sequence[Any] | None = None) -> Report:
    """Let every known part of `model` compute through the ops, in place.

    Released Swintormer blocks go through `swda_block`; diffusers' ResNet blocks through `res_block` on a CPU and
    through two `norm_silu_conv3x3` elsewhere, upsample layers through `upsample_conv3x3`, self-attention through one
    product and scaled_dot_product_attention; `conv_norm_out`, `conv_act` and `conv_out` through one
    `norm_silu_conv3x3`, or the first two through `group_norm_silu`.

    Parts are recognised by names, shapes and (diffusers) classes, also inside DataParallel, torch.compile and
    checkpoint wrappers. A released block of another forward, with the names and shapes of the released one, cannot be
    told apart: give an example. Parameters, state dict, hooks, mode, device and dtype stay as they are. Calls that the
    op does not take (further arguments, sides that are not multiples of the window, dropout while training, hooks or
    other modules put on inner parts later) go to the part's own forward, as before. Running it again changes nothing.
    Weights are packed once and packed again when their version counter moves; after a write through
    `parameter.data`, which moves none, call `swintormer_kernels.forget(model)`.

    Args:
        model: any module; a block itself, too.
        verify: an input of the model, or a sequence of its positional arguments, for which its output is compared
            before and after; see `patch.verify`.

    Returns:
        What was swapped, what was kept and why; `print` it.

    Raises:
        TypeError: `model` is no module, or `verify` no example; nothing is swapped then.
        RuntimeError: the outputs for the example differ by more than rounding explains; `model` is restored.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize takes a torch.nn.Module, found {type(model).__name__}")
    if verify is not None and not isinstance(verify, Tensor | Sequence):
        raise TypeError(f"verify takes an example input of the model, found {verify!r}")
    report = Report()
    swaps = {}
    for name, found in (*released.find(model), *diffusers.find(model)):
        if found is None:
            report.ours.append(name)
        elif isinstance(found, str):
            report.kept[name] = found
        elif isinstance(found, released.Swapped | diffusers.SwappedPart):
            report.swapped_before[name] = found
        else:
            swaps[name] = found
    report.swapped.update((name, swap()) for name, swap in swaps.items())
    return report if verify is None else replace(report, difference=_verified(model, verify))


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


def verify(model: nn.Module, example: Tensor | Sequence[Any]) -> float:
    """The largest relative difference, in the 2-norm, of an output tensor of an optimized model and the plain one.

    The model runs twice in its mode of now, without gradients and with the same random numbers; swapped parts stay
    swapped.

    Raises:
        RuntimeError: the difference is beyond 4 eps sqrt(n) k: eps of the output's dtype, n the longest sum in a
            weight of the model, k the number of swapped modules. In 16-bit dtypes that is wide: verify in float32.
    """
    arguments = (example,) if isinstance(example, Tensor) else tuple(example)
    swapped = [module for module in model.modules() if isinstance(module, SwappedModule)]
    ours = _outputs(model, arguments)
    classes = [type(module) for module in swapped]
    try:
        for module, cls in zip(swapped, classes, strict=True):
            module.__class__ = cls._base
        plain = _outputs(model, arguments)
    finally:
        for module, cls in zip(swapped, classes, strict=True):
            module.__class__ = cls
    longest = max((p[0].numel() for p in model.parameters() if p.ndim > 1), default=1)
    worst = 0.0
    for value, expected in zip(ours, plain, strict=True):
        difference = ((value - expected).norm() / expected.norm().clamp_min(torch.finfo(value.dtype).tiny)).item()
        allowed = 4 * torch.finfo(value.dtype).eps * longest**0.5 * len(swapped)
        if not difference <= allowed:
            raise RuntimeError(
                f"the optimized model computes something else: relative difference {difference:.1e}, "
                f"where rounding explains {allowed:.1e}"
            )
        worst = max(worst, difference)
    return worst


def _verified(model: nn.Module, example: Tensor | Sequence[Any]) -> float:
    try:
        return verify(model, example)
    except Exception:
        restore(model)
        raise


def _outputs(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(sorted(devices, key=str)):
        leaves = tree_leaves(model(*arguments))
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not found:
        raise TypeError("the model returns no floating point tensor to compare")
    return found
