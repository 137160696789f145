"""Launching of the Triton kernels: device, precision of products, and functions that also work in the interpreter.

    launch(kernel, (programs,), x, out, ..., C=48, PRECISION=precision(), **blocks_for("gated_ffn", 48, x.dtype))

Image sizes (pixels, H, W, strides) are integer arguments listed in a kernel's `do_not_specialize`. They are neither
constants nor divisibility hints of the compiled code, so another image size needs no compilation. Sizes that depend
only on the weights or the memory layout (C, hidden, window, ROWS) are `tl.constexpr`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from swintormer_kernels.backends.triton.layout import INTERPRETED

if bool(triton.knobs.runtime.interpret) != INTERPRETED:
    raise ImportError(
        "TRITON_INTERPRET changed after swintormer_kernels was imported; set it in the environment before Python starts"
    )

_INTERPRETED = tl.constexpr(INTERPRETED)


class Launch(NamedTuple):
    """One launch: the arguments of `kernel[grid](*arguments, **constants)`."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


_recordings: list[list[Launch]] = []  # the innermost last


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Context manager that records launches instead of running them, on any device. For one thread at a time.

    Tests use it to compile the launched kernels for GPUs that this machine does not have.
    """
    _recordings.append([])
    try:
        yield _recordings[-1]
    finally:
        _recordings.pop()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """`kernel[grid](*arguments, **constants)` on the device and current stream of the first tensor among `arguments`.

    Args:
        grid: number of programs along up to three axes; nothing is launched if one is 0.
        arguments: tensors, None for an absent one, integers, and (named) tuples of these.
        constants: the kernel's constexpr arguments, with num_warps and num_stages.
    """
    if 0 in grid:
        return
    if _recordings:
        _recordings[-1].append(Launch(kernel, grid, arguments, constants))
        return
    device = next(argument.device for argument in _flat(arguments) if isinstance(argument, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, **constants)


def _flat(arguments: tuple[Any, ...]) -> Iterator[Any]:
    for argument in arguments:
        yield from _flat(argument) if isinstance(argument, tuple) else (argument,)


def precision() -> str:
    """`input_precision` of tl.dot for float32: "ieee", or "tf32" if the user allows it for matrix products in torch."""
    matmul = torch.backends.cuda.matmul
    # Reading allow_tf32 raises after the newer attribute was set (torch 2.13).
    newer = getattr(matmul, "fp32_precision", None)
    return "tf32" if (newer == "tf32" if newer is not None else matmul.allow_tf32) else "ieee"


# ---- replacements of Triton functions: the same on a GPU, and correct in the interpreter -----------------------------


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b in float32."""
    # Triton 3.6's interpreter multiplies the bit patterns of bfloat16 as integers. In float32 the product of two half
    # precision numbers is exact, so converting first gives the result of the GPU.
    if _INTERPRETED:
        a, b = widen(a), widen(b)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def widen(x):
    """x in float32."""
    if _INTERPRETED and x.dtype == tl.bfloat16:  # the interpreter's conversion takes fifty passes of numpy
        wide = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """float32 x in DTYPE, rounded to nearest, ties to even. Also used before stores."""
    if _INTERPRETED and DTYPE == tl.bfloat16:  # the interpreter truncates
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        short = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        short = x.to(DTYPE)
    return short


if INTERPRETED:

    def bound(x: Any) -> int:
        """A scalar that depends on an argument, fit for the bounds of a `range`."""
        return x.handle.data.item()  # numpy >= 2.4 does not convert an array of one element to int

else:

    @triton.jit
    def bound(x):
        """A scalar that depends on an argument, fit for the bounds of a `range`."""
        return x
