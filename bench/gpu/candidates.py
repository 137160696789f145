"""Times of instances of the CUDA kernels that no table chooses yet beside those that it does.

The instances are built with CMake's SWINTORMER_CUDA_CANDIDATES. Each result is compared with that of the chosen one.
Times are medians of calls that take turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.gpu.cases import TILES
from bench.gpu.meter import Meter
from bench.gpu.timing import median_ms
from swintormer_kernels.backends.cuda import block_kernels, packing, runtime
from swintormer_kernels.backends.cuda.block_kernels import attend, finish
from swintormer_kernels.testing.block_cases import Shape, attention_weights, ffn_weights

TURNS, SECONDS = 7, 0.02
Choice = tuple[str, int, int, int]
# What is timed, its shape -> candidates: instance, threads, shared bytes, units of a block.
ATTENTION: dict[Shape, tuple[Choice, ...]] = {
    Shape(48, 1, 128, 128, 8): (("attention_bf16_d24_w16_m1", 512, 40992, 1),),
    Shape(192, 4, 32, 32, 8): (("attention_bf16_d24_w16_m1", 512, 40992, 1),),
    Shape(96, 1, 128, 128, 8): (("attention_bf16_d48_w16_m2", 256, 82096, 1),),
    Shape(48, 2, 64, 64, 4, window=8): (("attention_bf16_d16_w8_m1", 512, 31456, 4),),
}
TAIL: dict[Shape, tuple[Choice, ...]] = {
    Shape(192, 4, 32, 32, 8): (
        ("tail_bf16_c192", 256, 81920, 128),
        ("tail_bf16_c192_r128", 256, 119808, 128),
        ("tail_bf16_c192_r64", 256, 67584, 64),
    ),
    Shape(384, 8, 16, 16, 8): (("tail_bf16_c384_r64", 256, 163840, 64), ("tail_bf16_c384_r32", 256, 97280, 32)),
}
CHOSEN = ("tail_bf16_c192_r64", "tail_bf16_c384_r64", "tail_bf16_c384_r32")  # of tail.cu, for other sizes of a batch
NARROW = "tail_bf16_c192"  # takes 32 hidden channels at once and other weights of the projection


@contextmanager
def chosen(choice: Choice | None) -> Iterator[None]:
    """The tables choose `choice` for everything; None for themselves."""
    before = block_kernels.kernels, block_kernels.launch, dict(packing.WIDE)
    if choice is not None:
        table = SimpleNamespace(cuda_choose_attention=lambda *_: choice, cuda_choose_tail=lambda *_: choice)
        block_kernels.kernels = lambda: table  # type: ignore[assignment]
        if choice[0] not in CHOSEN:
            block_kernels.launch = lambda image, *rest: runtime.launch("candidates", *rest)  # type: ignore[assignment]
        if choice[0] == NARROW:
            del packing.WIDE[192]
    try:
        yield
    finally:
        block_kernels.kernels, block_kernels.launch = before[:2]  # type: ignore[assignment]
        packing.WIDE.clear()
        packing.WIDE.update(before[2])


def calls(shape: Shape, tiles: int, device: str, tail: bool) -> Callable[[], Tensor]:
    """A call of the first or the second kernel."""

    def cast(given: Any) -> Any:
        return type(given)(*(None if t is None else t.to(device, torch.bfloat16) for t in given))

    torch.manual_seed(0)
    x = torch.randn(tiles, shape.height, shape.width, shape.channels).to(device, torch.bfloat16).permute(0, 3, 1, 2)
    weights = cast(attention_weights(shape.channels, shape.heads, shape.window))
    weights.logit_scale.fill_(2.3)  # scale 10, as a network starts with
    if not tail:
        return lambda: attend(x, weights, shape.window, shape.shift)
    ffn = cast(ffn_weights(shape.channels, shape.hidden))
    tokens = torch.randn_like(x.permute(0, 2, 3, 1)).reshape(-1, shape.window**2, shape.channels)
    return lambda: finish(x, (tokens, weights, shape.window, shape.shift), ffn)


def same(shape: Shape, choice: Choice, tail: bool, device: str, tiles: int = TILES) -> float:
    """Largest difference from the chosen instance's result, in parts of its largest value."""
    call = calls(shape, tiles, device, tail)
    expected = call().float()
    with chosen(choice):
        found = call().float()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def run(out: Path, device: str, backends: tuple[str, ...], tiles: int = TILES) -> None:
    """Rows whose `by` is the instance; their error is `same`'s."""
    meter = Meter("candidates", out, device)
    for tail, table in ((False, ATTENTION), (True, TAIL)):
        for shape, candidates in table.items():
            call = calls(shape, tiles, device, tail)
            times: dict[Choice | None, list[float]] = {}
            for _ in range(TURNS):
                for choice in (None, *candidates):
                    with chosen(choice):
                        times.setdefault(choice, []).append(median_ms(call, device, SECONDS))
            what, case = "tail" if tail else "attention", f"C {shape.channels} heads {shape.heads} w {shape.window}"
            for choice, found in times.items():
                by = "chosen" if choice is None else choice[0]
                error = 0.0 if choice is None else same(shape, choice, tail, device, tiles)
                told: Any = {"what": what, "case": case, "dtype": torch.bfloat16, "by": by, "error": error}
                meter.row(**told, ms=statistics.median(found))
