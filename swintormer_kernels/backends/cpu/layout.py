"""How tensors reach the native extension: addresses with their sizes, memory layouts, and which tensors it takes."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

View = tuple[int, "torch.Size", tuple[int, ...], Tensor]
Buffer = tuple[int, int, Tensor]


def view(x: Tensor) -> View:
    """(address, shape, strides in elements, owner), which csrc/python/arguments.h reads."""
    assert x.dtype == torch.float32, "the native code takes the address for one of float32"
    return x.data_ptr(), x.shape, x.stride(), x


@overload
def dense(x: Tensor) -> Buffer: ...


@overload
def dense(x: None) -> None: ...


def dense(x: Tensor | None) -> Buffer | None:
    """(address, floats, owner) of `x`, or of a dense copy, which the owner keeps alive; None for None."""
    if x is None:
        return None
    assert x.dtype == torch.float32, "the native code takes the address for one of float32"
    x = x.contiguous()
    return x.data_ptr(), x.numel(), x


def float32_on_cpu(*tensors: Tensor | None) -> str | None:
    """Predicate: None if all these are dense float32 tensors on the CPU, else what is in the way."""
    for x in tensors:
        if x is None or (x.is_cpu and x.dtype is torch.float32 and x.layout is torch.strided):
            continue
        if x.device.type != "cpu":
            return f"the cpu backend takes tensors on the CPU, found one on {x.device}"
        if x.dtype != torch.float32:
            return f"the cpu backend takes float32, found {x.dtype}"
        if x.layout != torch.strided:
            return f"the cpu backend takes dense (strided) tensors, found layout {x.layout}"
    return None


# ---- images ----------------------------------------------------------------------------------------------------------


def image_like(x: Tensor, channels: int, scale: int = 1) -> Tensor:
    """An uninitialised result in channels_last, `scale` times as high and wide as `x`."""
    batch, _, height, width = x.shape
    shape = batch, channels, scale * height, scale * width
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


def rows_of_channels(x: Tensor) -> Tensor:
    """`x`, or a copy, with a pixel's channels next to one another and its rows of pixels after one another."""
    _, channel, down, right = x.stride()
    _, _, height, width = x.shape
    if channel == 1 and (height == 1 or width == 1 or down == width * right):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def like_planes(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor, bool]:
    """`x` and `out`, or copies, both in planes or both in rows of channels; and whether width comes before height."""
    kinds = walkable(out)
    if not kinds:
        out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
        kinds = walkable(out)
    common = [kind for kind in walkable(x) if kind in kinds]
    if common:
        return x, out, common[0][1]
    return torch.empty_like(out).copy_(x), out, kinds[0][1]


def walkable(x: Tensor) -> list[tuple[str, bool]]:
    """How the native code can walk `x`: in "planes" or in "rows", and whether width comes before height."""
    _, _, height, width = x.shape
    _, channel, down, right = x.stride()
    found = []
    for transposed, outer, inner, size in ((False, down, right, width), (True, right, down, height)):
        pixels = height * width
        if 1 < size < pixels and outer != inner * size:
            continue
        if (inner if size > 1 else outer) == 1 or pixels == 1:
            found.append(("planes", transposed))
        if channel == 1:
            found.append(("rows", transposed))
    return found
