"""Whether this machine and a device can run the CUDA kernels, in words. Imports neither kernels nor triton.

The emulated device (csrc/cuda/host) takes the same launches for CPU tensors: SWINTORMER_CUDA_EMULATE names its library.
It is for tests; automatic selection never takes it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cuda.built import built
from swintormer_kernels.transforms import constant_in_compiled_code

_asked = os.environ.get("SWINTORMER_CUDA_EMULATE", "")
EMULATOR: Path | None = Path(_asked) if _asked not in ("", "0") else None
"""The emulated device's library, or None: the kernels run on GPUs. Tests set it."""


class Size(NamedTuple):
    """What the choice of an instance depends on: channels of x, and for attention those of a head, and the window."""

    channels: int
    head: int | None = None
    window: int | None = None


TIMED: Mapping[tuple[str, int, int], frozenset[Size]] = {
    # A first version on an H200 (bench/results/cuda_h200.csv): 0.48 ms beside 1.27, 0.41 beside 1.15.
    ("swda_block", 9, 0): frozenset({Size(48, 24, 16)}),
    ("swda_attention", 9, 0): frozenset({Size(48, 24, 16)}),
}
"""(op, major, minor) -> sizes at which the CUDA kernels were faster than Triton's on a GPU of that capability. Others
have not been measured, or lost.

Not here although faster in the same table: `norm_silu_conv3x3` (1.1 to 1.3 times) and one of two sizes of
`group_norm_silu` (2.0 and 0.9 times). Both kernels load their input otherwise since then, and the convolution has eight
warps in place of four; those leads are too small to be taken for the new ones'. The block's led 2.6 times."""


class Facts(NamedTuple):
    """A device: compute capability, multiprocessors, bytes of shared memory that a block may ask for."""

    major: int
    minor: int
    multiprocessors: int
    shared_bytes: int


EMULATED = Facts(9, 0, 132, 227 * 1024)  # what the emulated device says of itself: an H100


def why_absent() -> str | None:
    """None if this machine has kernels, a driver and a device for them, otherwise the first thing that is missing."""
    if EMULATOR is not None:
        return native.why_absent()
    found = built()
    if not found.images:
        return f"the CUDA kernels were not built: {found.why_absent}"
    missing = native.why_absent()
    if missing is not None:
        return missing
    if torch.version.hip is not None:
        return "this torch is for ROCm; the CUDA kernels need one for CUDA"
    if not torch.cuda.is_available():
        return f"torch sees no CUDA device (the kernels are {found.told()})"
    return _driver_lacks()


@functools.lru_cache(maxsize=1)
def _driver_lacks() -> str | None:
    absent: str = native.extension().cuda_driver_absent()
    if absent:
        return absent
    version, nvcc = native.extension().cuda_driver_version(), built().nvcc
    if nvcc is not None and version // 1000 < nvcc[0]:
        told = f"{version // 1000}.{version % 1000 // 10}"
        return f"the driver ({told}) is older than the kernels ({nvcc[0]}.{nvcc[1]}); install a newer driver"
    return None


def device_lacks(device: torch.device) -> str | None:
    """None if there are kernels for this CUDA device, otherwise the reason."""
    if EMULATOR is not None:
        return None
    found = facts(device)
    if built().runs_on(found.major, found.minor):
        return None
    return f"no kernel for compute capability {found.major}.{found.minor}; built for {built().capabilities()}"


def image_lacks(image: str) -> str | None:
    """None if the fatbin of this name was built, otherwise the reason."""
    if EMULATOR is not None or image in built().images:
        return None
    return f"the CUDA kernels of {image} were not built: {built().why_absent or 'its fatbin is missing'}"


def facts(device: torch.device) -> Facts:
    """Facts of a CUDA device, or of the emulated one."""
    if EMULATOR is not None:
        return EMULATED
    return _facts(torch.cuda.current_device() if device.index is None else device.index)


@functools.lru_cache(maxsize=64)
def _facts(ordinal: int) -> Facts:
    return Facts(*native.extension().cuda_device_facts(ordinal))


def why_slower(op: str, x: Tensor, size: Size | None) -> str | None:
    """Why automatic selection does not take the CUDA kernels of `op` for x; None where it does.

    Args:
        op: name of the op.
        x: its first tensor.
        size: what was or was not timed; None for an op of which no size was.
    """
    if EMULATOR is not None:
        return "SWINTORMER_CUDA_EMULATE is set: the kernels run on the emulated device, which is for tests"
    if x.device.type != "cuda":
        return None
    timed = _timed(op, x.device)
    if size is not None and size in timed:
        return None
    return f"has not been timed on this kind of GPU{_with(size) if timed else ''}; ask for it by name"


def _with(size: Size | None) -> str:
    if size is None:
        return ""
    heads = "" if size.head is None else f", heads of {size.head} and windows of {size.window}"
    return f" with {size.channels} channels{heads}"


@constant_in_compiled_code
def _timed(op: str, where: torch.device) -> tuple[Size, ...]:
    found = facts(where)
    return tuple(TIMED.get((op, found.major, found.minor), ()))
