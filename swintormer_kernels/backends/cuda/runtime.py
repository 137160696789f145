"""Launching of the CUDA kernels, on a GPU or on the emulated device.

launch("ddim_step", kernels().cuda_choose_ddim_step(bfloat16), blocks, [z, pred, None, out], [count], [0.5, 2.0])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.backends.cuda import device, emulator
from swintormer_kernels.backends.cuda.built import FOLDER

Choice: TypeAlias = "tuple[str, int, int, int]"
"""An instance: (name, threads of a block, bytes of its shared memory, units of work of a block); kernels/choice.h."""


def kernels() -> ModuleType:
    """The native extension, which has the tables `cuda_choose_<kernel>`."""
    return native.extension()


def launch(
    image: str,
    choice: Choice,
    grid: int,
    pointers: Sequence[Tensor | None],
    integers: Sequence[int] = (),
    floats: Sequence[float] = (),
    outputs: int = 1,
) -> None:
    """Queue one launch on the current stream of the first tensor's device; nothing is launched if `grid` is 0.

    Args:
        image: name of the fatbin.
        choice: the instance.
        grid: blocks.
        pointers, integers, floats: the fields of the kernel's argument struct, in this order; None is a null pointer.
        outputs: how many of the pointers, the last ones, the kernel writes to. The emulated device guards the others.
    """
    if grid == 0:
        return
    name, threads, shared_bytes, _ = choice
    if device.EMULATOR is not None:
        emulator.launch(device.EMULATOR, (name, grid, threads, shared_bytes), pointers, integers, floats, outputs)
        return
    where = next(tensor.device for tensor in pointers if tensor is not None)
    ordinal = where.index
    kernels().cuda_launch(
        image=_path(image),
        kernel=name,
        device=ordinal,
        grid=grid,
        threads=threads,
        shared_bytes=shared_bytes,
        pointers=[0 if tensor is None else tensor.data_ptr() for tensor in pointers],
        integers=integers,
        floats=floats,
        stream=_stream_of(ordinal),
    )


_paths: dict[str, str] = {}


def _path(image: str) -> str:
    if image not in _paths:
        _paths[image] = str(FOLDER / f"{image}.fatbin")
    return _paths[image]


def _stream(ordinal: int) -> int:
    return torch.cuda.current_stream(ordinal).cuda_stream


# torch's own function for generated code; it makes no Stream object and takes a tenth of the time.
_stream_of: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _stream)
