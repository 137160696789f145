"""Whether the products of the block's ops multiply float32 or bfloat16 on the CPU: this module decides for every call.

bfloat16 is taken for tensors of bfloat16 and under `torch.autocast("cpu", torch.bfloat16)`, where the CPU multiplies it
(AVX512_BF16; not under a lower SWINTORMER_ISA). Sums, norms, softmax and residuals are float32 either way. The gradient
multiplies as its forward pass did. Where the CPU has no such instruction, the same calls multiply float32, which is
faster there than imitating bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.transforms import constant_in_compiled_code

_emulated = [False]  # a list because it is written from functions


@constant_in_compiled_code
def multiplies_bfloat16() -> bool:
    """Whether calls of bfloat16 multiply bfloat16 on this machine: the CPU can, or `emulated_bfloat16` is active."""
    return _emulated[0] or (native.why_absent() is None and native.extension().has_bfloat16())


@contextmanager
def emulated_bfloat16() -> Iterator[None]:
    """Context manager for tests: calls of bfloat16 have the values of bfloat16 products on every CPU, only slowly.

    Affects all threads.
    """
    before, _emulated[0] = _emulated[0], True
    try:
        yield
    finally:
        _emulated[0] = before


def with_precision(backend: str, x: Tensor) -> str:
    """`backend` of a call with input `x`, followed by ":bfloat16" if it is to multiply bfloat16."""
    if backend != "cpu" or not multiplies_bfloat16():
        return backend
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return f"{backend}:bfloat16" if autocast or x.dtype is torch.bfloat16 else backend
