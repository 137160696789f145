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
from functools import partial
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
from swintormer_kernels.patch.swap import (
    WRAPPERS,
    SwappedModule,
    swap_class,
    unwrapped,
    why_not_conv,
    why_not_swappable,
)
from swintormer_kernels.records import AttentionWeights, FFNWeights
from swintormer_kernels.registry import Explanation, explain

_COORDINATES = "_swda_coordinates"
_CONVS = ("attn.qkv", "attn.qkv_dwconv", "attn.project_out", "ffn.project_in", "ffn.project_out")
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


class SwappedBlock(SwappedModule):
    """A released block through `swda_block`."""

    _swap_kept: tuple[int, int]  # window and shift
    norm1: Any  # parts are of the block's own classes
    attn: Any
    norm2: Any
    ffn: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or not self._op_takes(args[0]):
            return super().forward(*args, **kwargs)
        return swda_block(args[0], *self._weights(), *self._swap_kept)

    def _op_takes(self, x: Any) -> bool:
        """Whether the op computes what the block's own forward would, with this input and the parts of now."""
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != self.attn.project_out.weight.shape[0]:
            return False
        window = self._swap_kept[0]
        return x.shape[2] % window == 0 and x.shape[3] % window == 0 and self.unchanged()

    def _weights(self) -> tuple[AttentionWeights, FFNWeights]:
        bias_table = position_bias(self.attn.cpb_mlp, getattr(self, _COORDINATES))
        return attention_weights(self.norm1, self.attn, bias_table), ffn_weights(self.norm2, self.ffn)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SwappedBlock:
        before = getattr(self, _COORDINATES)
        super()._apply(fn, recurse)
        setattr(self, _COORDINATES, remade_coordinates(self._swap_kept[0], before, getattr(self, _COORDINATES)))
        return self

    def parts(self) -> tuple[Any, ...]:
        norm1, attn, norm2, ffn = self.norm1, self.attn, self.norm2, self.ffn
        leaves = (
            *(getattr(norm1, "body", None), getattr(norm2, "body", None)),
            *(getattr(attn, name, None) for name in ("qkv", "qkv_dwconv", "project_out")),
            *(getattr(ffn, name, None) for name in ("project_in", "project_out")),
        )
        return norm1, attn, norm2, ffn, *leaves, *attn.cpb_mlp.modules()

    def describe(self) -> Swapped:
        window, shift = self._swap_kept
        attention, ffn = self._weights()
        channels, hidden = ffn.project_out.shape[:2]
        x = attention.qkv.new_empty(()).expand(1, channels, 8 * window, 8 * window)  # one number, whatever the size
        explanation = explain(swda_block, x, attention, ffn, window, shift)
        return Swapped(channels, len(attention.logit_scale), hidden, window, shift, explanation)

    def unswap(self) -> None:
        delattr(self, _COORDINATES)
        super().unswap()


def _swap(block: Any, window: int, shift: int) -> Swapped:
    like = block.attn.cpb_mlp[0].weight
    with torch.inference_mode(False):  # a buffer made in inference mode could not be trained with
        coordinates = log_spaced_coordinates(window).to(device=like.device, dtype=like.dtype)
    swap_class(block, SwappedBlock, (window, shift))
    block.register_buffer(_COORDINATES, coordinates, persistent=False)
    described: Swapped = block.describe()
    return described


# ---- recognition -----------------------------------------------------------------------------------------------------


def find(model: nn.Module) -> Iterator[tuple[str, Swapped | str | Callable[[], Swapped] | None]]:
    """(name, what it is) of everything that resembles a released part.

    What swaps it and describes it; or why it is kept; or the description of what an earlier call swapped; or None for
    a block of this package. Attention and feed-forward modules of a block do not come again by themselves.
    """
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        children = module._modules
        if _is_attention(unwrapped(children.get("attn"))) or _is_ffn(unwrapped(children.get("ffn"))):
            inside |= {id(part) for part in module.modules()}
            yield name, _found(module)
        elif _is_attention(module) or _is_ffn(module):
            kind = "attention" if _is_attention(module) else "feed-forward"
            yield name, f"{kind} of this kind alone: the op includes the norm before it and the residual"


def _is_attention(module: nn.Module | None) -> bool:
    return module is not None and {"qkv", "qkv_dwconv", "project_out"} <= module._modules.keys()


def _is_ffn(module: nn.Module | None) -> bool:
    return module is not None and {"project_in", "project_out"} <= module._modules.keys()


def _found(block: nn.Module) -> Swapped | str | Callable[[], Swapped] | None:
    if isinstance(block, Block):
        return None
    if isinstance(block, SwappedBlock):
        return block.describe()
    sizes = why_not_block(block) or window_and_shift(block)
    return sizes if isinstance(sizes, str) else partial(_swap, block, *sizes)


def why_not_block(block: nn.Module) -> str | None:
    """None if `block` has the structure of a released block, else the first difference."""
    if type(block).forward is nn.Module.forward:
        return "it has no forward of its own, so something else computes it"
    return why_not_swappable(block) or _why_parameters_differ(block) or _why_parts_differ(block)


def _clean(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(f"{wrapper}.", "")
    return name


def _why_parameters_differ(block: nn.Module) -> str | None:
    found = {_clean(name): tuple(p.shape) for name, p in block.named_parameters(remove_duplicate=False)}
    channels, hidden = (*found.get("ffn.project_out.weight", ()), 0, 0)[:2]
    heads, perceptron = ((*found.get(name, ()), 0)[0] for name in ("attn.logit_scale", "attn.cpb_mlp.0.weight"))
    wanted: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("norm1.body.weight", "norm1.body.bias"), (channels,)),
        **dict.fromkeys(("norm2.body.weight", "norm2.body.bias"), (channels,)),
        "attn.logit_scale": (heads, 1, 1),
        "attn.cpb_mlp.0.weight": (perceptron, 2),
        "attn.cpb_mlp.0.bias": (perceptron,),
        "attn.cpb_mlp.2.weight": (heads, perceptron),
        "attn.qkv.weight": (3 * channels, channels, 1, 1),
        "attn.qkv_dwconv.weight": (3 * channels, 1, 3, 3),
        "attn.project_out.weight": (channels, channels, 1, 1),
        "ffn.project_in.weight": (2 * hidden, channels, 1, 1),
        "ffn.project_out.weight": (channels, hidden, 1, 1),
    }
    missing = [name for name in wanted if name not in found]
    if missing:
        return f"it has no {missing[0]}"
    biases = {f"{conv}.bias": wanted[f"{conv}.weight"][:1] for conv in _CONVS}
    extra = [name for name in found if name not in wanted | biases]
    if extra:
        return f"parameter {extra[0]} has no place in a released block"
    if heads < 1 or channels % (2 * heads):
        return f"attn.logit_scale has {heads} heads, and twice as many must divide the {channels} channels"
    for name, shape in found.items():
        if shape != (wanted | biases)[name]:
            return f"{name} has shape {shape}, a released block of this size has {(wanted | biases)[name]}"
    return None


def _why_parts_differ(block: Any) -> str | None:
    """What of the inner modules no parameter tells."""
    parts = {_clean(f"{name}.").rstrip("."): part for name, part in block.named_modules()}
    for name, part in parts.items():
        if getattr(part, "p", 0) and "dropout" in type(part).__name__.lower():
            return f"{name} drops values while training (p = {part.p}), and the op has no dropout"
        eps = getattr(part, "eps", 1e-5)
        if eps != 1e-5:
            return f"{name} has eps {eps}, and the op computes with 1e-05"
    known = {*("", "norm1", "norm1.body", "norm2", "norm2.body", "attn", "attn.cpb_mlp", "ffn"), *_CONVS}
    known |= {f"attn.cpb_mlp.{index}" for index in range(3)}
    for name, part in parts.items():
        if name not in known and not isinstance(part, nn.Identity | nn.Dropout):
            return f"{name} ({type(part).__name__}) has no place in it"
    for name in _CONVS:
        depthwise = name == "attn.qkv_dwconv"
        groups = block.attn.qkv_dwconv.weight.shape[0] if depthwise else 1
        reason = why_not_conv(name, parts[name], 3 if depthwise else 1, groups)
        if reason is not None:
            return reason
    act = block.attn.cpb_mlp[1]
    return None if type(act) is nn.ReLU else f"attn.cpb_mlp.1 is a {type(act).__name__}, not a ReLU"


# ---- what stands in no shape -----------------------------------------------------------------------------------------


def window_and_shift(block: nn.Module) -> tuple[int, int] | str:
    """The window's side from usual attribute names and from buffers, the shift from attributes; or why not."""
    windows, shifts = _attributes(block, _WINDOW_NAMES), _attributes(block, _SHIFT_NAMES)
    for name, value in (windows | shifts).items():
        if not isinstance(value, int):
            return f"{name} is {value}, and the op takes one whole number for both sides"
    windows |= _windows_of_buffers(block)
    if not windows:
        return f"its window stands in no attribute ({', '.join(_WINDOW_NAMES)}) and in no buffer"
    if len(set(windows.values())) > 1 or min(windows.values()) < 2:
        return f"its window is unclear: {_listed(windows)}"
    if not shifts:
        return f"its shift stands in no attribute ({', '.join(_SHIFT_NAMES)})"
    window = next(iter(windows.values()))
    found = {window // 2 if shift is True else int(shift) for shift in shifts.values()}
    if len(found) > 1 or not 0 <= min(found) < window:
        return f"its shift is unclear for a window of {window}: {_listed(shifts)}"
    return window, found.pop()


def _listed(values: dict[str, int]) -> str:
    return ", ".join(f"{name} says {value}" for name, value in values.items())


def _attributes(block: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Attributes of the block and of its attention by these names; of equal sides one."""
    found: dict[str, Any] = {}
    for prefix, owner in (("", block), ("attn.", unwrapped(block.attn))):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, Tensor):
                value = value.tolist()
            if isinstance(value, tuple | list) and len(set(value)) == 1:
                value = value[0]
            if value is not None and not callable(value):
                found[prefix + name] = value
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
