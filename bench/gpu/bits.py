"""Results of a GPU beside those of the emulated device (docs/cuda.md), bit by bit: a line of bits.csv for each.

Both run the same source; the order of sums in a tensor core, exp2 and reciprocal roots may differ in their last bits.
More than two units in the last place of the result are worth a look.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu import cases
from bench.gpu.calls import on
from bench.gpu.processes import ROOT
from bench.gpu.rows import append_line
from swintormer_kernels.backends.cuda import device as cuda_device

CASES = (*(("swda_block", case) for case in cases.SMALLEST), *cases.SMALLEST_OF_DENOISER.items())


def run(out: Path, device: str, backends: tuple[str, ...]) -> None:
    """The device's results first; those of the emulated one may need a build."""
    found = {}
    for dtype in (torch.bfloat16, torch.float16):
        for op, case in CASES:
            arguments, keywords = cases.given(op, case, device, dtype=dtype)
            found[op, case, dtype] = on("cuda", cases.function(op), arguments, keywords).cpu()
    before, cuda_device.EMULATOR = cuda_device.EMULATOR, library()
    try:
        for (op, case, dtype), result in found.items():
            arguments, keywords = cases.given(op, case, "cpu", dtype=dtype)
            apart = units_apart(result, on("cuda", cases.function(op), arguments, keywords))
            told = {"what": op, "case": case, "dtype": str(dtype).removeprefix("torch."), "elements": apart.numel()}
            told |= {"different": int((apart > 0).sum()), "above_2": int((apart > 2).sum()), "most": int(apart.max())}
            append_line(out / "bits.csv", told, 4)
            print(*told.values(), sep=", ", flush=True)
    finally:
        cuda_device.EMULATOR = before


def units_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many numbers of their dtype, of 16 bits, lie between the elements."""

    def place(t: Tensor) -> Tensor:
        bits = t.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (place(a) - place(b)).abs()


def library() -> Path:
    """The emulated device, built unless it is there: a quarter of a minute with two cores."""
    sys.path.insert(0, str(ROOT / "tests" / "cuda"))
    from emulator import KERNEL_SOURCES, build

    return build("plain", KERNEL_SOURCES)  # type: ignore[no-any-return]
