"""How tensors reach the native extension, and which ones it takes."""

from __future__ import annotations

import torch
from torch import Tensor

View = tuple[int, "torch.Size", tuple[int, ...]]


def view(x: Tensor) -> View:
    """(address, shape, strides in elements), which csrc/native.cpp reads. Keep `x` alive during the call."""
    assert x.dtype == torch.float32, "the native code takes the address for one of float32"
    return x.data_ptr(), x.shape, x.stride()


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
