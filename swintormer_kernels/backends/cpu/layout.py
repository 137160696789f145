"""Arguments of the native extension: addresses with sizes, memory layouts, and the tensors that it accepts."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

View = tuple[int, "torch.Size", tuple[int, ...], Tensor]
Image = tuple[int, "torch.Size", tuple[int, ...], Tensor, bool]
Buffer = tuple[int, int, Tensor]


def view(x: Tensor) -> View:
    """(address, shape, strides in elements, owner), the type View of csrc/python/arguments.h."""
    assert x.dtype == torch.float32, "the native code takes the address for one of float32"
    return x.data_ptr(), x.shape, x.stride(), x


def image(x: Tensor) -> Image:
    """`view` of a tensor that may be bfloat16, and whether it is: the type Image of csrc/python/arguments.h."""
    assert x.dtype in (torch.float32, torch.bfloat16), "the native code takes the address for one of these"
    return x.data_ptr(), x.shape, x.stride(), x, x.dtype == torch.bfloat16


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
    """Predicate: None if all tensors are strided float32 tensors on the CPU, otherwise the reason."""
    return _on_cpu(torch.float32, tensors)


def bfloat16_on_cpu(*tensors: Tensor | None) -> str | None:
    """The same for bfloat16."""
    return _on_cpu(torch.bfloat16, tensors)


def _on_cpu(dtype: torch.dtype, tensors: tuple[Tensor | None, ...]) -> str | None:
    for x in tensors:
        if x is None or (x.is_cpu and x.dtype is dtype and x.layout is torch.strided):
            continue
        if x.device.type != "cpu":
            return f"the cpu backend takes tensors on the CPU, found one on {x.device}"
        if x.dtype != dtype:
            beside = " beside an input of bfloat16" if dtype is torch.bfloat16 else ""
            return f"the cpu backend takes {str(dtype).removeprefix('torch.')}{beside}, found {x.dtype}"
        if x.layout != torch.strided:
            return f"the cpu backend takes dense (strided) tensors, found layout {x.layout}"
    return None


# ---- images ----------------------------------------------------------------------------------------------------------


def image_like(x: Tensor, channels: int, scale: int = 1) -> Tensor:
    """An uninitialised (B, channels, scale H, scale W) tensor in channels_last."""
    batch, _, height, width = x.shape
    shape = batch, channels, scale * height, scale * width
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


def rows_of_channels(x: Tensor) -> Tensor:
    """`x`, or a copy, with contiguous channels of a pixel and contiguous rows of pixels."""
    _, channel, down, right = x.stride()
    _, _, height, width = x.shape
    if channel == 1 and (height == 1 or width == 1 or down == width * right):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def like_planes(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor, bool]:
    """`x` and `out`, or copies, both in planes or both in rows of channels, and whether they are transposed."""
    kinds = walkable(out)
    if not kinds:
        out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
        kinds = walkable(out)
    common = [kind for kind in walkable(x) if kind in kinds]
    if common:
        return x, out, common[0][1]
    return torch.empty_like(out).copy_(x), out, kinds[0][1]


def walkable(x: Tensor) -> list[tuple[str, bool]]:
    """Memory layouts of `x` for the native code: ("planes" or "rows", whether height and width are transposed)."""
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
