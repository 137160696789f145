"""How a module is made to compute through an op in place: its class becomes a subclass of its own, made on the fly.

Also what every recognition asks about a module before its class may be swapped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SwappedModule(nn.Module):
    """What the class of a swapped module inherits from, before the module's own class."""

    _base: Any  # the module's own class
    _swap_types: tuple[type, ...]  # classes of `parts()` when it was swapped
    _swap_kept: Any  # what else the swap needs

    def parts(self) -> tuple[Any, ...]:
        """What computes in the module's own forward and no longer does; None for what is not there."""
        raise NotImplementedError

    def describe(self) -> Any:
        """What the report says."""
        raise NotImplementedError

    def unchanged(self) -> bool:
        """Whether the inner modules are those of the swap, and nobody wants to see them run."""
        parts = self.parts()
        if tuple(map(type, parts)) != self._swap_types:
            return False
        return not any(has_hooks(part) for part in parts if isinstance(part, nn.Module))

    def unswap(self) -> None:
        """Remove what the swap added to the object, and give it its own class back."""
        del self._swap_types, self._swap_kept
        self.__class__ = type(self)._base

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle finds classes by name, and this one is made on the fly: name its parts instead.
        cls: Any = type(self)
        return _unpickled, (cls._mixin, cls._base), super().__reduce_ex__(2)[2]


WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
"""Where torch.compile and checkpoint wrappers keep the module that they wrap."""

_classes: dict[tuple[type, type], Any] = {}


def swap_class(module: Any, mixin: type[SwappedModule], kept: Any = None) -> None:
    """Let `module` compute as `mixin` says, which finds `kept` in `_swap_kept`."""
    module.__class__ = _swapped_class(mixin, type(module))
    module._swap_types, module._swap_kept = tuple(map(type, module.parts())), kept


def _swapped_class(mixin: type[SwappedModule], base: type[nn.Module]) -> Any:
    """The subclass of `base` that computes as `mixin` says; always the same one, so that compiled code is reused."""
    if (mixin, base) not in _classes:
        body = {"_base": base, "_mixin": mixin, "__module__": base.__module__}
        _classes[mixin, base] = type(f"Swapped{base.__name__}", (mixin, base), body)
    return _classes[mixin, base]


def _unpickled(mixin: type[SwappedModule], base: type[nn.Module]) -> SwappedModule:
    cls = _swapped_class(mixin, base)
    module: SwappedModule = cls.__new__(cls)
    return module


def unwrapped(module: nn.Module | None) -> nn.Module | None:
    """The module inside compile and checkpoint wrappers."""
    while module is not None and len(module._modules) == 1 and next(iter(module._modules)) in WRAPPERS:
        module = next(iter(module._modules.values()))
    return module


def has_hooks(module: nn.Module) -> bool:
    """Whether something wants to see this module run, forward or backward."""
    state = module.__dict__  # asked in every call of a swapped part; through getattr it took four times as long
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    )


def why_not_swappable(module: nn.Module) -> str | None:
    """None if a swap of the class changes nothing but the forward, else why: for any module, whatever it computes."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled to TorchScript, which cannot be changed"
    if "forward" in vars(module):
        return "its forward was replaced on the object itself, so a swap would not be called"
    parameters = list(module.parameters())
    places = {(p.device, p.dtype) for p in parameters}
    if len(places) > 1 or not all(p.is_floating_point() for p in parameters):
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        return f"its parameters must share one device and one floating point dtype, found {found}"
    strange = [p for p in parameters if type(p.data) is not Tensor or p.layout != torch.strided]
    if strange:
        return f"its parameters are no plain tensors but {type(strange[0].data).__name__} ({strange[0].layout})"
    return why_hooked({name: part for name, part in module.named_modules() if name})


def why_hooked(parts: dict[str, nn.Module]) -> str | None:
    """None if no hook hangs on these modules, whose forward would not run after a swap."""
    hooked = [name for name, part in parts.items() if has_hooks(part)]
    return f"a hook hangs on {hooked[0]}, which would not run any more; remove it first" if hooked else None


def why_not_conv(name: str, conv: Any, kernel: int, groups: int = 1) -> str | None:
    """None if `conv` is a plain convolution of this kernel that keeps the image's size, else the first difference."""
    if type(conv) is not nn.Conv2d:
        return f"{name} is a {type(conv).__name__}, not a plain Conv2d"
    same = (kernel // 2,) * 2
    expected = {
        "kernel size": ((kernel, kernel), conv.kernel_size),
        "stride": ((1, 1), conv.stride),
        "padding": (same, {"same": same, "valid": (0, 0)}.get(str(conv.padding), conv.padding)),
        "dilation": ((1, 1), conv.dilation),
        "groups": (groups, conv.groups),
        "padding_mode": ("zeros" if kernel > 1 else conv.padding_mode, conv.padding_mode),
    }
    for what, (wanted, found) in expected.items():
        if wanted != found:
            return f"{name} has {what} {found}, and the op has {wanted}"
    return None
