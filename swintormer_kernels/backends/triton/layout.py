"""Devices, dtypes and memory layouts that the Triton kernels accept. Does not import triton."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from torch import Tensor

# Triton reads the variable at its import and at each definition of a kernel; runtime.py checks that both agree.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
"""Whether kernels run in Triton's interpreter on CPU tensors: for tests, thousands of times slower than a GPU."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_CHANNELS = 384  # of a block; the released network's widest level
MOST_PIXELS = 2**31 - 1  # kernels use 32-bit pixel indices and 64-bit products with strides


def dense_on_gpu(*tensors: Tensor | None) -> str | None:
    """Predicate: None if the Triton kernels accept these tensors, x first, otherwise the reason.

    All must be strided, on one device, and of one dtype: float32, bfloat16 or float16. Under autocast dtypes may
    differ, because autocast converts them.
    """
    x = next(tensor for tensor in tensors if tensor is not None)
    where = "cpu" if INTERPRETED else "cuda"
    if x.device.type != where:
        takes = "CPU tensors while TRITON_INTERPRET is set" if INTERPRETED else "CUDA tensors"
        return f"the triton backend takes {takes}, found one on {x.device}"
    mixed = torch.is_autocast_enabled(where)
    for tensor in tensors:
        reason = None if tensor is None else _in_the_way(tensor, x, mixed)
        if reason is not None:
            return f"the triton backend takes {reason}"
    pixels = x.shape[0] * x.shape[2] * x.shape[3] if x.ndim == 4 else 0
    if pixels > MOST_PIXELS:
        return f"the triton backend takes at most {MOST_PIXELS} pixels, found {pixels}"
    return None


def _in_the_way(tensor: Tensor, x: Tensor, mixed: bool) -> str | None:
    if tensor.device != x.device:
        return f"tensors on one device, found {x.device} and {tensor.device}"
    if tensor.dtype not in DTYPES:
        return f"float32, bfloat16 or float16, found {tensor.dtype}"
    if tensor.dtype != x.dtype and not mixed:
        return f"tensors of one dtype, found {x.dtype} and {tensor.dtype}"
    return None if tensor.layout == torch.strided else f"dense (strided) tensors, found layout {tensor.layout}"


def only_for_tests() -> str | None:
    """Why automatic selection does not use kernels in the interpreter; None without the interpreter."""
    if INTERPRETED:
        return "TRITON_INTERPRET is set: the kernels run in Triton's interpreter, which is for tests"
    return None


_Record = TypeVar("_Record", bound="tuple[Any, ...]")


def is_rows(x: Tensor) -> bool:
    """Whether the batch is one contiguous matrix (pixels, C), that is channels_last (it may be NCHW as well)."""
    return x.is_contiguous(memory_format=torch.channels_last)


def dense_layout(x: Tensor) -> Tensor:
    """x if it is channels_last, otherwise x or a copy in NCHW; in channels_last from 2^31 elements per image on."""
    if is_rows(x):
        return x
    small = x.shape[1] * x.shape[2] * x.shape[3] < 2**31  # so offsets within an image fit 32 bits
    return x.contiguous(memory_format=torch.contiguous_format if small else torch.channels_last)


def dense(record: _Record) -> _Record:
    """The record of weights with contiguous, detached tensors; None stays None."""
    kind: Any = type(record)
    found: _Record = kind(*(tensor if tensor is None else tensor.detach().contiguous() for tensor in record))
    return found
