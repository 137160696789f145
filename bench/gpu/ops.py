"""Times of the ops, each by the reference ("eager"), CUDA and Triton beside each other."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu import cases, checks
from bench.gpu.calls import NAN, both, on, relative, sides, wide
from bench.gpu.meter import DTYPES, Meter
from bench.gpu.timing import graph_ms, peak_mb, rotated, rotating_ms

SECONDS = 0.1  # of each time
MOST_COPIES = 64
GRADIENT_TILES = 8


def run(out: Path, device: str, backends: tuple[str, ...]) -> None:
    """Forward in bfloat16."""
    meter = Meter("ops", out, device)
    for op, case, tiles in cases.timed():
        cases.or_told(time_op, meter, op, case, tiles, backends)


def run_gradients(out: Path, device: str, backends: tuple[str, ...]) -> None:
    """A training step of both networks, then forward and backward of the released one's blocks."""
    meter = Meter("gradients", out, device)
    for dtype in DTYPES:
        cases.or_told(_training, meter, dtype, backends)
        for case in cases.RELEASED:
            for op in cases.BLOCKS:
                cases.or_told(time_op, meter, op, case, GRADIENT_TILES, backends, dtype, "both")


def _training(meter: Meter, dtype: torch.dtype, backends: tuple[str, ...]) -> None:
    from bench.gpu import network  # needs packages that the ops do not

    for preset in network.TIMED:
        cases.or_told(network.time_training, meter, preset, dtype, backends)


def time_op(
    meter: Meter,
    name: str,
    case: str,
    tiles: int,
    backends: tuple[str, ...],
    dtype: torch.dtype = torch.bfloat16,
    passes: str = "forward",
) -> None:
    """Rows of one case; a backend that declines or fails is told, and the next follows.

    Forward passes of CUDA and Triton are replays of a graph. Errors are of the forward, of the first tile.
    """
    op = cases.function(name)
    arguments, keywords = cases.given(name, case, meter.device, tiles, dtype)
    work = importlib.import_module(f"swintormer_kernels.ops.{name}").cost(*arguments, **keywords)
    first = arguments if tiles == 1 else (arguments[0][:1], *arguments[1:])
    exact = on("reference", op, *wide((first, keywords)))
    copies, eager_ms = rotated(arguments, meter.device, MOST_COPIES), NAN
    for by, backend in sides(backends):
        reason = cases.op_of(name).why_not(backend, *arguments, **keywords)
        reason = reason or (checks.raised(name, meter.out) if by == "cuda" else None)
        if reason is not None:
            print(f"{name}, {case}, {dtype}, by {by}: not timed: {reason}", flush=True)
            continue
        launched = "graph" if by != "eager" and passes == "forward" and meter.device != "cpu" else "plain"
        call = on if passes == "forward" else both
        turns = [partial(call, backend, op, copy, keywords) for copy in copies]
        measured = cases.or_told(_measured, turns, launched, meter.device)
        if measured is None:
            continue
        ms, peak = measured
        eager_ms = ms if by == "eager" else eager_ms
        told: Any = {"what": name, "case": case, "dtype": dtype, "by": by, "passes": passes, "launched": launched}
        told |= {"macs": work.macs or NAN, "moved": work.bytes, "peak_mb": peak}
        error = relative(on(backend, op, first, keywords), exact)
        meter.row(**told, ms=ms, eager_ms=eager_ms, error=error)


def _measured(turns: list[Any], launched: str, device: str) -> tuple[float, float]:
    peak = peak_mb(turns[0], device)
    return (graph_ms if launched == "graph" else rotating_ms)(turns, device, SECONDS), peak
