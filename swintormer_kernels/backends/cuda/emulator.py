"""Launches on the emulated device (csrc/cuda/host), where each CUDA thread is a fiber on the CPU. For tests."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

SCHEDULES = ("forward", "reverse", "random", "warp_by_warp", "warp_by_warp_reverse")
INPUT, BOTH = 0, 2  # Access of csrc/cuda/host/shadow.h
REPORT_BYTES = 20000


class Fault(RuntimeError):
    """The emulated device refused a launch, or found that a kernel does what no kernel may; a line for each fault."""


@dataclass(frozen=True)
class Options:
    """How blocks run; the fields are those of csrc/cuda/host/block.h.

    Attributes:
        schedule: one of `SCHEDULES`.
        seed: of the random schedule.
        late_copies: asynchronous copies bring nothing until they are waited for.
        check: look for races and accesses out of bounds; the library must be built for it.
        count: count bank conflicts and sectors of the first block.
    """

    schedule: str = "forward"
    seed: int = 1
    late_copies: bool = False
    check: bool = True
    count: bool = False


options = Options()
"""Of the next launches; tests set it."""


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("name", ctypes.c_char_p),
        ("access", ctypes.c_int32),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("schedule", ctypes.c_int32),
        ("seed", ctypes.c_uint32),
        ("late_copies", ctypes.c_int32),
        ("check", ctypes.c_int32),
        ("count", ctypes.c_int32),
    )


def launch(
    library: Path,
    block: tuple[str, int, int, int],
    pointers: Sequence[Tensor | None],
    integers: Sequence[int],
    floats: Sequence[float],
    outputs: int,
) -> None:
    """Run (name, grid, threads, shared bytes) on CPU tensors; the arguments are those of `runtime.launch`.

    Raises:
        Fault: the launch is refused, or a check finds a fault.
    """
    name, grid, threads, shared_bytes = block
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in pointers]
    arguments = struct.pack(f"<{len(addresses)}Q{len(integers)}i{len(floats)}f", *addresses, *integers, *floats)
    buffers = (_Buffer * len(pointers))()
    for i, tensor in enumerate(pointers):
        if tensor is not None:
            access = BOTH if i >= len(pointers) - outputs else INPUT
            buffers[i] = _Buffer(tensor.data_ptr(), _extent(tensor), f"pointer {i}".encode(), access)
    chosen = _Options(
        SCHEDULES.index(options.schedule), options.seed, options.late_copies, options.check, options.count
    )
    report = ctypes.create_string_buffer(REPORT_BYTES)
    faults = _function(library)(
        name.encode(),
        *(grid, threads, shared_bytes),
        *(arguments, len(arguments)),
        *(buffers, len(pointers)),
        *(ctypes.byref(chosen), report, REPORT_BYTES),
    )
    if faults:
        raise Fault(f"{name}: {report.value.decode(errors='replace').strip()}")


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last in memory."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


@functools.lru_cache(maxsize=8)
def _function(library: Path) -> Any:
    function = ctypes.CDLL(str(library)).swk_emulate
    number, memory = ctypes.c_int, ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p, *[number] * 3, memory, number, memory, number, memory, memory, number]
    function.restype = number
    return function
