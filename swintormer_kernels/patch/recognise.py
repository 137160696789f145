"""What a module of any model is, read off its structure: names of its parts, shapes, attributes; never its class.

The parts are named as in the released checkpoints: `norm1.body`, `norm2.body`, `ffn.{project_in,project_out}`,
`attn.{logit_scale,cpb_mlp,qkv,qkv_dwconv,project_out}`. Every check answers with None or in words, for the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
"""Where torch.compile and checkpoint wrappers keep the module that they wrap."""

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
_EMPTY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unwrapped(module: nn.Module | None) -> nn.Module | None:
    """The module inside compile and checkpoint wrappers."""
    while module is not None and len(module._modules) == 1 and next(iter(module._modules)) in WRAPPERS:
        module = next(iter(module._modules.values()))
    return module


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
    if isinstance(block, torch.jit.ScriptModule):
        return "it is compiled to TorchScript, which cannot be changed"
    if "forward" in vars(block):
        return "its forward was replaced on the object itself, so a swap would not be called"
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
    return "; ".join(reasons) or _why_not_computable(block)


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


def _why_not_computable(block: nn.Module) -> str | None:
    """Reasons that are not in shapes: mixed or strange tensors, dropout, hooks on parts that would no longer run."""
    parameters = list(block.parameters())
    places = {(p.device, p.dtype) for p in parameters}
    if len(places) > 1 or not parameters[0].is_floating_point():
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        return f"its parameters must share one device and one floating point dtype, found {found}"
    strange = [p for p in parameters if type(p.data) is not Tensor or p.layout != torch.strided]
    if strange:
        return f"its parameters are no plain tensors but {type(strange[0].data).__name__} ({strange[0].layout})"
    for name, part in block.named_modules():
        if getattr(part, "p", 0) and "dropout" in type(part).__name__.lower():
            return f"{name} drops values while training (p = {part.p}), and the op has no dropout"
        if name and has_hooks(part):
            return f"a hook hangs on {name}, which would not run any more; remove it first"
    return None


def runs_the_same_code(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules can differ in parameter values only: same classes, names, shapes, buffers and attributes."""
    parts, others = list(a.named_modules()), list(b.named_modules())
    if [(name, type(part)) for name, part in parts] != [(name, type(part)) for name, part in others]:
        return False
    shapes = ([(name, p.shape, p.dtype, p.device) for name, p in module.named_parameters()] for module in (a, b))
    buffers, other_buffers = dict(a.named_buffers()), dict(b.named_buffers())
    return (
        next(shapes) == next(shapes)
        and buffers.keys() == other_buffers.keys()
        and all(torch.equal(buffers[name], other_buffers[name]) for name in buffers)
        and all(_plain(part) == _plain(other) for (_, part), (_, other) in zip(parts, others, strict=True))
    )


def _plain(module: nn.Module) -> dict[str, object]:
    """Attributes beside tensors, parts and hooks."""
    skipped = (*_EMPTY_MODULE, *WRAPPERS)
    return {name: _comparable(value) for name, value in vars(module).items() if name not in skipped}


def _comparable(value: object) -> object:
    """Plain values as they are; anything else stands for itself and equals nothing else."""
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_comparable, value))
    return value if isinstance(value, bool | int | float | str | None) else id(value)


def extra_parts(block: nn.Module) -> list[str]:
    """Inner modules that a released block has not and that may compute something: "ffn.act (GELU)"."""
    known = {_clean(name).rpartition(".")[0] for name in _REQUIRED} | {"", "norm1", "norm2", "attn", "ffn"}
    return [
        f"{_clean(name)} ({type(part).__name__})"
        for name, part in block.named_modules()
        if _clean(f"{name}.").rstrip(".") not in known | {"attn.cpb_mlp", "attn.cpb_mlp.1"}
        and not isinstance(part, nn.Identity | nn.Dropout)
    ]


def has_hooks(module: nn.Module) -> bool:
    """Whether something wants to see this module run, forward or backward."""
    state = module.__dict__  # asked in every call of a swapped part; through getattr it took four times as long
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    )


def remove_hooks(module: nn.Module) -> None:
    """Empty the hooks of `module` and of everything in it."""
    for part in module.modules():
        for hooks in _HOOKS:
            getattr(part, hooks).clear()


# ---- what stands in no shape -----------------------------------------------------------------------------------------


def window_and_shifts(block: nn.Module) -> tuple[int, tuple[int, ...]] | str:
    """The window's side and the shift, from usual attribute names and from buffers; or in words why not.

    Where nothing tells the shift, the two usual ones are returned: 0 and half a window.
    """
    window = _window(block)
    if isinstance(window, str):
        return window
    shifts = _attributes(block, _SHIFT_NAMES)
    if isinstance(shifts, str):
        return shifts
    if not shifts:
        return window, (0, window // 2)
    found = {window // 2 if shift is True else int(shift) for shift in shifts.values()}
    if len(found) > 1 or not 0 <= min(found) < window:
        return f"its shift is unclear for a window of {window}: {_listed(shifts)}"
    return window, tuple(found)


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
