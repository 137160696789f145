"""How a module is made to compute through an op in place: its class becomes a subclass of its own, made on the fly."""

from __future__ import annotations

from typing import Any

from torch import nn


class SwappedModule(nn.Module):
    """What the class of a swapped module inherits from, before the module's own class."""

    _base: Any  # the module's own class

    def unswap(self) -> None:
        """Remove what the swap added to the object, and give it its own class back."""
        self.forget_swap()
        self.__class__ = type(self)._base

    @classmethod
    def name_of(cls, base: type[nn.Module]) -> str:
        """What the class made of `base` is called."""
        return f"Swapped{base.__name__}"

    def forget_swap(self) -> None:
        """Remove the attributes that the swap added to the object."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle finds classes by name, and this one is made on the fly: name its parts instead.
        cls: Any = type(self)
        return _unpickled, (cls._mixin, cls._base), super().__reduce_ex__(2)[2]


_classes: dict[tuple[type, type], Any] = {}


def swapped_class(mixin: type[SwappedModule], base: type[nn.Module]) -> Any:
    """The subclass of `base` that computes as `mixin` says; always the same one, so that compiled code is reused."""
    if (mixin, base) not in _classes:
        body = {"_base": base, "_mixin": mixin, "__module__": base.__module__}
        _classes[mixin, base] = type(mixin.name_of(base), (mixin, base), body)
    return _classes[mixin, base]


def _unpickled(mixin: type[SwappedModule], base: type[nn.Module]) -> SwappedModule:
    cls = swapped_class(mixin, base)
    module: SwappedModule = cls.__new__(cls)
    return module
