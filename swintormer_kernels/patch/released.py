"""The released Swintormer block: recognised by its structure, swapped for `swda_block`.

Recognition reads names of parts, shapes and attributes, never the block's class: the parts are named as in the
released checkpoints, `norm1.body`, `norm2.body`, `ffn.{project_in,project_out}` and
`attn.{logit_scale,cpb_mlp,qkv,qkv_dwconv,project_out}`. Every check answers with None or with the reason, for the
report. What a forward computes beside its parts cannot be read: `optimize(model, verify=example)` compares numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swintormer_kernels.nn import (
    attention_weights,
    ffn_weights,
    log_spaced_coordinates,
    position_bias,
    remade_coordinates,
)
from swintormer_kernels.ops.swda_block import swda_block
from swintormer_kernels.patch.swap import (
    WRAPPERS,
    SwappedModule,
    has_hooks,
    swapped_class,
    unwrapped,
    why_forward_fixed,
    why_hooked,
    why_tensors_unfit,
)
from swintormer_kernels.records import AttentionWeights, FFNWeights
from swintormer_kernels.registry import Explanation, explain

_COORDINATES = "_swda_coordinates"
_HALVES = {
    "attention": ("norm1.", "attn."),
    "feed-forward": ("norm2.", "ffn."),
}
_REQUIRED = {
    *("norm1.body.weight", "norm1.body.bias", "attn.logit_scale"),
    *("attn.cpb_mlp.0.weight", "attn.cpb_mlp.0.bias", "attn.cpb_mlp.2.weight"),
    *("attn.qkv.weight", "attn.qkv_dwconv.weight", "attn.project_out.weight"),
    *("norm2.body.weight", "norm2.body.bias", "ffn.project_in.weight", "ffn.project_out.weight"),
}
_OPTIONAL = {
    *("attn.qkv.bias", "attn.qkv_dwconv.bias", "attn.project_out.bias"),
    *("ffn.project_in.bias", "ffn.project_out.bias"),
}
_WINDOW_NAMES = ("window_size", "window_sizes", "win_size", "window", "ws")
_SHIFT_NAMES = ("shift_size", "shift_sizes", "shift", "shifted")


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


# ---- the swapped block -----------------------------------------------------------------------------------------------


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
        return tuple(map(type, parts)) == self._swda.parts and not any(map(has_hooks, parts))

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


def swap(block: Any, window: int, shift: int) -> None:
    like = block.attn.cpb_mlp[0].weight
    with torch.inference_mode(False):  # a buffer made in inference mode could not be trained with
        coordinates = log_spaced_coordinates(window).to(device=like.device, dtype=like.dtype)
    block.__class__ = swapped_class(SwappedBlock, type(block))
    block._swda = _Swap(window, shift, tuple(map(type, _parts(block))))
    block.register_buffer(_COORDINATES, coordinates, persistent=False)


def describe(block: Any) -> Swapped:
    """Sizes and backend of a swapped block."""
    window, shift = block._swda.window, block._swda.shift
    attention, ffn = block._weights()
    channels, hidden = ffn.project_out.shape[:2]
    x = attention.qkv.new_empty(()).expand(1, channels, 8 * window, 8 * window)  # one number, whatever the size
    explanation = explain(swda_block, x, attention, ffn, window, shift)
    return Swapped(channels, len(attention.logit_scale), hidden, window, shift, explanation)


# ---- recognition -----------------------------------------------------------------------------------------------------


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, kind) of what resembles a released part; kind is "block", "attention" or "feed-forward".

    The attention and feed-forward modules of a block do not come again by themselves.
    """
    inside: set[int] = set()
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind is None or id(module) in inside:
            continue
        if kind == "block":
            inside |= {id(part) for part in module.modules()}
        yield name, module, kind


def _kind(module: nn.Module) -> str | None:
    parts = module._modules
    if _resembles_attention(unwrapped(parts.get("attn"))) or _resembles_ffn(unwrapped(parts.get("ffn"))):
        return "block"
    if _resembles_attention(module):
        return "attention"
    return "feed-forward" if _resembles_ffn(module) else None


def _resembles_attention(module: nn.Module | None) -> bool:
    return module is not None and {"qkv", "qkv_dwconv", "project_out"} <= module._modules.keys()


def _resembles_ffn(module: nn.Module | None) -> bool:
    return module is not None and {"project_in", "project_out"} <= module._modules.keys()


# ---- structure -------------------------------------------------------------------------------------------------------


def why_not_block(block: nn.Module) -> str | None:
    """None if `block` has the structure of a released block, else the first difference of each half."""
    fixed = why_forward_fixed(block)
    if fixed is not None:
        return fixed
    if type(block).forward is nn.Module.forward:
        return "it has no forward of its own, so something else computes it"
    names = {_clean(name) for name, _ in block.named_parameters(remove_duplicate=False)}
    outside = sorted(name for name in names if not name.startswith(tuple(sum(_HALVES.values(), ()))))
    if outside:
        return f"parameter {outside[0]} has no place in a released block"
    found = {
        "attention": _why_parameters_differ("attention", names) or _why_attention_differs(block),
        "feed-forward": _why_parameters_differ("feed-forward", names) or _why_ffn_differs(block),
    }
    reasons = [reason for reason in found.values() if reason is not None]
    if len(reasons) == 1:
        fits = next(half for half, reason in found.items() if reason is None)
        return f"only its {fits} half is of the released kind: {reasons[0]}"
    return (
        "; ".join(reasons)
        or why_tensors_unfit(block)
        or _why_dropout(block)
        or why_hooked({name: part for name, part in block.named_modules() if name})
        or _why_parts_unknown(block)
    )


def _clean(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(f"{wrapper}.", "")
    return name


def _why_parameters_differ(half: str, names: set[str]) -> str | None:
    prefixes = _HALVES[half]
    missing = sorted(name for name in _REQUIRED - names if name.startswith(prefixes))
    if missing:
        return f"it has no {missing[0]}"
    extra = sorted(name for name in names - _REQUIRED - _OPTIONAL if name.startswith(prefixes))
    return f"parameter {extra[0]} has no place in it" if extra else None


def _why_attention_differs(block: Any) -> str | None:
    attn = block.attn
    channels, heads = attn.project_out.weight.shape[0], attn.logit_scale.shape[0]
    if attn.logit_scale.shape != (heads, 1, 1) or heads < 1 or channels % (2 * heads):
        return (
            f"attn.logit_scale must be (heads, 1, 1) with 2 * heads dividing the {channels} channels, "
            f"found {tuple(attn.logit_scale.shape)}"
        )
    hidden = attn.cpb_mlp[0].weight.shape[0]
    shapes = tuple(attn.cpb_mlp[0].weight.shape), tuple(attn.cpb_mlp[2].weight.shape)
    if shapes != ((hidden, 2), (heads, hidden)):
        return f"attn.cpb_mlp must map 2 coordinates to {heads} heads, found weights {shapes[0]} and {shapes[1]}"
    return (
        _why_norm_differs("norm1", block.norm1, channels)
        or _why_conv_differs("attn.qkv", attn.qkv, (3 * channels, channels, 1, 1))
        or _why_conv_differs("attn.qkv_dwconv", attn.qkv_dwconv, (3 * channels, 1, 3, 3))
        or _why_conv_differs("attn.project_out", attn.project_out, (channels, channels, 1, 1))
    )


def _why_ffn_differs(block: Any) -> str | None:
    channels, hidden = block.ffn.project_out.weight.shape[:2]
    return (
        _why_norm_differs("norm2", block.norm2, channels)
        or _why_conv_differs("ffn.project_in", block.ffn.project_in, (2 * hidden, channels, 1, 1))
        or _why_conv_differs("ffn.project_out", block.ffn.project_out, (channels, hidden, 1, 1))
    )


def _why_norm_differs(name: str, norm: Any, channels: int) -> str | None:
    if norm.body.weight.shape != (channels,) or norm.body.bias.shape != (channels,):
        return f"{name}.body must have weight and bias of shape ({channels},), found {tuple(norm.body.weight.shape)}"
    for owner in (norm, norm.body):
        eps = getattr(owner, "eps", 1e-5)
        if eps != 1e-5:
            return f"{name} has eps {eps}, and the op computes with 1e-05"
    return None


def _why_conv_differs(name: str, conv: Any, shape: tuple[int, int, int, int]) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"{name} is a {type(conv).__name__}, not a plain Conv2d"
    out, _, kernel, _ = shape
    padding = {"same": (kernel // 2,) * 2, "valid": (0, 0)}.get(str(conv.padding), conv.padding)
    expected = {
        "weight": (shape, tuple(conv.weight.shape)),
        "bias": ((out,), (out,) if conv.bias is None else tuple(conv.bias.shape)),
        "stride": ((1, 1), conv.stride),
        "padding": ((kernel // 2,) * 2, padding),
        "dilation": ((1, 1), conv.dilation),
        "groups": (out if kernel == 3 else 1, conv.groups),
        "padding_mode": ("zeros" if kernel == 3 else conv.padding_mode, conv.padding_mode),
    }
    for what, (wanted, found) in expected.items():
        if wanted != found:
            return f"{name} has {what} {found}, a released block has {wanted}"
    return None


def _why_dropout(block: nn.Module) -> str | None:
    for name, part in block.named_modules():
        if getattr(part, "p", 0) and "dropout" in type(part).__name__.lower():
            return f"{name} drops values while training (p = {part.p}), and the op has no dropout"
    return None


def _why_parts_unknown(block: nn.Module) -> str | None:
    """None if every inner module is one that a released block has, or does nothing."""
    known = {_clean(name).rpartition(".")[0] for name in _REQUIRED}
    known |= {"", "norm1", "norm2", "attn", "ffn", "attn.cpb_mlp", "attn.cpb_mlp.1"}
    for name, part in block.named_modules():
        clean = _clean(f"{name}.").rstrip(".")
        if clean not in known and not isinstance(part, nn.Identity | nn.Dropout):
            return f"{clean} ({type(part).__name__}) has no place in it"
    attn: Any = block.attn
    act = attn.cpb_mlp[1]
    return None if type(act) is nn.ReLU else f"attn.cpb_mlp.1 is a {type(act).__name__}, not a ReLU"


# ---- what stands in no shape -----------------------------------------------------------------------------------------


def window_and_shift(block: nn.Module) -> tuple[int, int] | str:
    """The window's side from usual attribute names and from buffers, the shift from attributes; or why not."""
    window = _window(block)
    if isinstance(window, str):
        return window
    shifts = _attributes(block, _SHIFT_NAMES)
    if isinstance(shifts, str):
        return shifts
    if not shifts:
        return f"its shift stands in no attribute ({', '.join(_SHIFT_NAMES)})"
    found = {window // 2 if shift is True else int(shift) for shift in shifts.values()}
    if len(found) > 1 or not 0 <= min(found) < window:
        return f"its shift is unclear for a window of {window}: {_listed(shifts)}"
    return window, found.pop()


def _window(block: nn.Module) -> int | str:
    named = _attributes(block, _WINDOW_NAMES)
    if isinstance(named, str):
        return named
    told = named | _windows_of_buffers(block)
    if not told:
        return f"its window stands in no attribute ({', '.join(_WINDOW_NAMES)}) and in no buffer"
    if len(set(told.values())) > 1 or min(told.values()) < 2:
        return f"its window is unclear: {_listed(told)}"
    return next(iter(told.values()))


def _listed(values: dict[str, int]) -> str:
    return ", ".join(f"{name} says {value}" for name, value in values.items())


def _attributes(block: Any, names: tuple[str, ...]) -> dict[str, int] | str:
    """Attributes of the block and of its attention that hold a side: name -> int or bool; or a sentence."""
    found: dict[str, int] = {}
    for prefix, owner in (("", block), ("attn.", unwrapped(block.attn))):
        for name in names:
            value = getattr(owner, name, None)
            if value is None or callable(value):
                continue
            if isinstance(value, Tensor):
                value = value.tolist()
            sides = set(value) if isinstance(value, tuple | list) else {value}
            side = sides.pop() if sides else None
            if sides or not isinstance(side, int):
                return f"{prefix}{name} is {value}, and the op takes one whole number for both sides"
            found[prefix + name] = side
    return found


def _windows_of_buffers(block: nn.Module) -> dict[str, int]:
    """Windows told by relative coordinate tables ((2w-1)^2 pairs) and pair indices (N x N): buffer name -> w."""
    found = {}
    for name, buffer in block.named_buffers():
        tail = name.rpartition(".")[2]
        if "coord" in tail and buffer.ndim and buffer.shape[-1] == 2:
            side = math.isqrt(buffer.numel() // 2)
            if side**2 * 2 == buffer.numel() and side % 2:
                found[name] = (side + 1) // 2
        elif "index" in tail and buffer.ndim == 2 and buffer.shape[0] == buffer.shape[1]:
            side = math.isqrt(buffer.shape[0])
            if side**2 == buffer.shape[0]:
                found[name] = side
    return found
