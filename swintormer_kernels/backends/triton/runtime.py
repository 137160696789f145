"""What every Triton kernel of this package needs around it: the device, the products' precision, tuned choices, launch.

    tuned = choice("gated_ffn", {"C": 48, "hidden": 127}, x)      # block sizes, num_warps, num_stages
    launch(kernel, (programs,), x, out, x.stride(0), ..., C=48, PRECISION=precision(x), **tuned)

A kernel's sizes of the image (pixels, H, W, strides) are plain integers listed in its `do_not_specialize`: they are
neither constants nor divisibility hints of the compiled code, so a second image size compiles nothing. What depends on
the weights or on the layout alone (C, hidden, window, whether channels lie densely) is a `tl.constexpr`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
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

CHOICES = Path(__file__).with_name("choices")
ARCHITECTURES = ("sm_80", "sm_90", "default")
_INTERPRETED = tl.constexpr(INTERPRETED)


class Launch(NamedTuple):
    """One launch: what `kernel[grid](*arguments, **constants)` takes."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


class _Recording(NamedTuple):
    launches: list[Launch]
    architecture: str


_recordings: list[_Recording] = []  # the innermost last


@contextlib.contextmanager
def recording(architecture: str) -> Iterator[list[Launch]]:
    """Inside, launches are written down and not run, with the choices of `architecture`, wherever the tensors are.

    This is how the ahead-of-time table compiles what really runs (aot.py). One thread at a time.
    """
    _recordings.append(_Recording([], architecture))
    try:
        yield _recordings[-1].launches
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
        _recordings[-1].launches.append(Launch(kernel, grid, arguments, constants))
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


# ---- tuned choices ---------------------------------------------------------------------------------------------------


def architecture(device: torch.device) -> str:
    """Whose tuned choices serve `device`: sm_90 from there on, sm_80 itself, "default" (64 KB of shared memory)."""
    if _recordings:
        return _recordings[-1].architecture
    if device.type != "cuda" or torch.version.hip is not None:
        return "default"
    # 8.6, 8.9 and 12.0 have 99 KB of shared memory for a program where 8.0 has 163 and 9.0 and 10.0 have 227.
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_90", (10, 3): "sm_90"}.get(_capability(device), "default")


@functools.lru_cache(maxsize=64)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


class Tuning(NamedTuple):
    """What may stand in choices/<name>.json for the launches of `kernel`."""

    kernel: str
    candidates: tuple[dict[str, int], ...]  # likely the best first
    hopeless: Callable[[dict[str, int], Mapping[str, int], int], bool]
    """(candidate, sizes, bytes of an element): whether it need not be compiled to know that it loses."""


_tried: dict[str, dict[str, int]] = {}


@contextlib.contextmanager
def trying(kernel: str, candidate: dict[str, int]) -> Iterator[None]:
    """Inside, `choice(kernel, ...)` is `candidate` (bench/tune.py). One thread at a time."""
    _tried[kernel] = candidate
    try:
        yield
    finally:
        del _tried[kernel]


def choice(kernel: str, sizes: Mapping[str, int], x: Tensor) -> dict[str, int]:
    """Block sizes, num_warps and num_stages for `kernel` with these sizes, x's dtype and x's device.

    choices/<kernel>.json holds {"about": where they come from, "choices": [entry, ...]}, an entry
    {"architectures": [...], "dtypes": [...], "sizes": {...}, "choice": {...}}.

    Args:
        kernel: name of the file.
        sizes: what of the weights' sizes decides: C, hidden, heads, window, never the image's.

    Returns:
        Among the architecture's entries, or the default ones where it has none, the one with these sizes, else the
        nearest above, whose blocks fit as well, else the nearest below. An entry without a size takes any.

    Raises:
        FileNotFoundError, KeyError: there is no such file, or no entry for the dtype.
    """
    if kernel in _tried:
        return dict(_tried[kernel])
    key = (kernel, tuple(sizes.items()), str(x.dtype).removeprefix("torch."), architecture(x.device))
    return dict(_choice(*key))


@functools.lru_cache(maxsize=4096)
def _choice(kernel: str, sizes: tuple[tuple[str, int], ...], dtype: str, arch: str) -> Mapping[str, int]:
    entries = [entry for entry in choices(kernel) if dtype in entry["dtypes"]]
    for name in dict.fromkeys((arch, "default")):
        fitting = [entry for entry in entries if name in entry["architectures"]]
        if fitting:
            return min(fitting, key=lambda entry: _distance(entry["sizes"], dict(sizes)))["choice"]
    raise KeyError(f"choices/{kernel}.json holds nothing for {dtype} on {arch} and nothing by default")


def _distance(entry: Mapping[str, int], sizes: Mapping[str, int]) -> tuple[tuple[bool, int], ...]:
    steps = [entry.get(name, size) - size for name, size in sizes.items()]
    return tuple((step < 0, abs(step)) for step in steps)


@functools.lru_cache(maxsize=64)
def choices(kernel: str) -> list[dict[str, Any]]:
    """All entries of choices/<kernel>.json."""
    return json.loads((CHOICES / f"{kernel}.json").read_text(encoding="utf-8"))["choices"]


def forget_choices() -> None:
    """To be called after a file of choices changed."""
    choices.cache_clear()
    _choice.cache_clear()
