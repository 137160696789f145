"""Times of instances of the CUDA kernels that no table chooses yet beside those that it does, on a GPU.

    python -m bench.gpu.candidates [--out DIR]

Each result is compared with that of the chosen instance. Times are medians of CUDA events, in turn, of blocks of the
released network for 40 tiles of 256x256 (candidates.csv; also printed).
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from swintormer_kernels.backends.cuda import block_kernels, packing, runtime
from swintormer_kernels.backends.cuda.block_kernels import attend, finish
from swintormer_kernels.ops.swda_block import swda_block
from swintormer_kernels.registry import use_backend
from swintormer_kernels.testing.block_cases import Shape, attention_weights, ffn_weights

TILES, TURNS, CALLS = 40, 7, 10
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
# Blocks of the network `small` for a tile of 256x256.
SMALL = (
    Shape(24, 1, 128, 128, 4, window=8),
    Shape(48, 2, 64, 64, 4, window=8),
    Shape(96, 4, 32, 32, 4, window=8),
    Shape(192, 8, 16, 16, 4, window=8),
    Shape(48, 1, 128, 128, 4, window=8),
)
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
    yield
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


def small_blocks(device: str, tiles: int = TILES) -> Iterator[tuple[str, str, float, float]]:
    """(what, backend, time, error beside float64) of the blocks of `small`; the error for one tile. Triton last, which
    compiles."""
    for backend in ("cuda", "reference", "triton"):
        for shape in SMALL:
            torch.manual_seed(0)
            x = torch.randn(tiles, shape.height, shape.width, shape.channels).to(device, torch.bfloat16)
            made = (
                attention_weights(shape.channels, shape.heads, shape.window),
                ffn_weights(shape.channels, shape.hidden),
            )
            given = tuple(type(w)(*(None if t is None else t.to(x) for t in w)) for w in made)
            wide = tuple(type(w)(*(None if t is None else t.double() for t in w)) for w in given)
            call = partial(swda_block, x.permute(0, 3, 1, 2), *given, shape.window, shape.shift)
            one = x[:1].permute(0, 3, 1, 2)
            exact = swda_block(one.double(), *wide, shape.window, shape.shift)
            with use_backend(backend):
                error = (
                    (swda_block(one, *given, shape.window, shape.shift).double() - exact).norm() / exact.norm()
                ).item()
                call()
                found = statistics.median(milliseconds(call) for _ in range(3))
            yield f"small, C {shape.channels} heads {shape.heads}", backend, found, error


def milliseconds(call: Callable[[], Tensor]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for candidates.csv")
    asked = parser.parse_args()
    rows: list[tuple[str, str, float, float]] = []
    for tail, table in ((False, ATTENTION), (True, TAIL)):
        for shape, candidates in table.items():
            what = (
                f"{'tail' if tail else 'attention'} C {shape.channels} heads {shape.heads} {shape.height}x{shape.width}"
            )
            call = calls(shape, TILES, "cuda", tail)
            times: dict[Choice | None, list[float]] = {}
            for _ in range(TURNS):
                for choice in (None, *candidates):
                    with chosen(choice):
                        call()
                        times.setdefault(choice, []).append(milliseconds(call))
            for choice, found in times.items():
                name = "chosen" if choice is None else choice[0]
                difference = 0.0 if choice is None else same(shape, choice, tail, "cuda")
                rows.append((what, name, statistics.median(found), difference))
                print(f"{what}: {name} {rows[-1][2]:.4f} ms, difference {difference:.1e}", flush=True)
    with torch.no_grad():
        for row in small_blocks("cuda"):
            rows.append(row)
            print("{}: {} {:.4f} ms, error {:.2e}".format(*row), flush=True)
    if asked.out is not None:
        with (asked.out / "candidates.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("what", "instance", "ms", "difference"), *rows])


if __name__ == "__main__":
    main()
