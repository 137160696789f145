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

    def unswap(self) -> None:
        """Remove what the swap added to the object, and give it its own class back."""
        self.forget_swap()
        self.__class__ = type(self)._base

    def forget_swap(self) -> None:
        """Remove the attributes that the swap added to the object."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle finds classes by name, and this one is made on the fly: name its parts instead.
        cls: Any = type(self)
        return _unpickled, (cls._mixin, cls._base), super().__reduce_ex__(2)[2]


WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
"""Where torch.compile and checkpoint wrappers keep the module that they wrap."""

_classes: dict[tuple[type, type], Any] = {}


def swapped_class(mixin: type[SwappedModule], base: type[nn.Module]) -> Any:
    """The subclass of `base` that computes as `mixin` says; always the same one, so that compiled code is reused."""
    if (mixin, base) not in _classes:
        body = {"_base": base, "_mixin": mixin, "__module__": base.__module__}
        _classes[mixin, base] = type(f"Swapped{base.__name__}", (mixin, base), body)
    return _classes[mixin, base]


def _unpickled(mixin: type[SwappedModule], base: type[nn.Module]) -> SwappedModule:
    cls = swapped_class(mixin, base)
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


def why_forward_fixed(module: nn.Module) -> str | None:
    """None if a swap of the class would change what a call of `module` runs."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled to TorchScript, which cannot be changed"
    if "forward" in vars(module):
        return "its forward was replaced on the object itself, so a swap would not be called"
    return None


def why_tensors_unfit(module: nn.Module) -> str | None:
    """None if the parameters are plain tensors of one device and one floating point dtype."""
    parameters = list(module.parameters())
    places = {(p.device, p.dtype) for p in parameters}
    if len(places) > 1 or not parameters[0].is_floating_point():
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        return f"its parameters must share one device and one floating point dtype, found {found}"
    strange = [p for p in parameters if type(p.data) is not Tensor or p.layout != torch.strided]
    if strange:
        return f"its parameters are no plain tensors but {type(strange[0].data).__name__} ({strange[0].layout})"
    return None


def why_hooked(parts: dict[str, nn.Module]) -> str | None:
    """None if no hook hangs on these modules, whose forward would not run after a swap."""
    hooked = [name for name, part in parts.items() if has_hooks(part)]
    return f"a hook hangs on {hooked[0]}, which would not run any more; remove it first" if hooked else None
