"""What every Triton kernel of this package needs around it: the device, the precision of products, the launch.

    launch(kernel, (programs,), x, out, ..., C=48, PRECISION=precision(), **blocks_for("gated_ffn", 48, x.dtype))

A kernel's sizes of the image (pixels, H, W, strides) are plain integers listed in its `do_not_specialize`: they are
neither constants nor divisibility hints of the compiled code, so a second image size compiles nothing. What depends on
the weights or on the layout alone (C, hidden, window, whether channels lie densely) is a `tl.constexpr`.
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
    """One launch: what `kernel[grid](*arguments, **constants)` takes."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


_recordings: list[list[Launch]] = []  # the innermost last


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, launches are written down and not run, wherever the tensors are. One thread at a time.

    Tests compile what really runs this way, for GPUs that are not there.
    """
    _recordings.append([])
    try:
        yield _recordings[-1]
    finally:
        _recordings.pop()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """`kernel[grid](*arguments, **constants)` on the device and current stream of the first tensor among `arguments`.

    Args:
        grid: programs along up to three axes; nothing is launched where one is 0.
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
    """`input_precision` of tl.dot for float32: "ieee", or "tf32" where the user allows that for matrix products."""
    matmul = torch.backends.cuda.matmul
    # Asking for allow_tf32 raises once somebody has used the newer name (seen with torch 2.13).
    newer = getattr(matmul, "fp32_precision", None)
    return "tf32" if (newer == "tf32" if newer is not None else matmul.allow_tf32) else "ieee"


# ---- what kernels take instead of Triton's own: the same on a GPU, and right in the interpreter, too -----------------


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b in float32."""
    # Triton 3.6's interpreter multiplies the bit patterns of bfloat16 as integers; in float32 a product of two
    # halves is exact, so widening first gives what the GPU gives.
    if _INTERPRETED:
        a, b = widen(a), widen(b)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def widen(x):
    """x in float32."""
    if _INTERPRETED and x.dtype == tl.bfloat16:  # its own way takes fifty passes of numpy
        wide = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """float32 x in DTYPE, to the nearest, ties to even; also for what is stored."""
    if _INTERPRETED and DTYPE == tl.bfloat16:  # the interpreter cuts off the lower bits
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        short = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        short = x.to(DTYPE)
    return short


if INTERPRETED:

    def bound(x: Any) -> int:
        """A scalar that depends on an argument, fit for the bounds of a `range`."""
        return x.handle.data.item()  # numpy from 2.4 on makes no int of the array of one that a scalar is there

else:

    @triton.jit
    def bound(x):
        """A scalar that depends on an argument, fit for the bounds of a `range`."""
        return x
