"""Times of whole networks: as they are, as CUDA graphs, through `Deblurrer` and through torch.compile."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import swintormer_kernels as sk
from bench.gpu import cases, checks
from bench.gpu.calls import NAN, forward, on, relative, sides
from bench.gpu.cases import TILE, TILES
from bench.gpu.meter import Meter
from bench.gpu.timing import median_ms, peak_mb, rotated, rotating_ms
from swintormer import PRESETS, Deblurrer, NetworkConfig, Swintormer
from swintormer.cli.macs import count_macs
from swintormer.execution.cuda_graph import GraphedForward

TIMED = ("released", "small")
PICTURE = (1120, 1680)
TRAINED = 8
STEPS_OF = (16, 32)
COMPILED = tuple(cases.RELEASED)[:3]
BFLOAT16 = torch.bfloat16


def run(out: Path, device: str, backends: tuple[str, ...]) -> None:
    """What matters most comes first. A picture may wait for the self-check of Triton's kernels, which takes minutes."""
    meter = Meter("network", out, device)
    for preset in TIMED:
        cases.or_told(time_network, meter, preset, BFLOAT16, backends)
    for preset in TIMED:
        cases.or_told(time_picture, meter, preset, backends)
    for preset in TIMED:
        cases.or_told(time_network, meter, preset, torch.float32, backends)


def run_training(out: Path, device: str, backends: tuple[str, ...]) -> None:
    """Steps of `small`, of 16 pairs before those of 32."""
    meter = Meter("training", out, device)
    for batch in STEPS_OF:
        cases.or_told(time_steps, meter, batch, backends)


def run_compiled(out: Path, device: str, backends: tuple[str, ...]) -> None:
    """What torch.compile makes of the reference: blocks, then the whole network."""
    meter = Meter("compile", out, device)
    for case in COMPILED:
        cases.or_told(time_compiled_block, meter, case)
    cases.or_told(time_compiled_network, meter)


def make_network(config: NetworkConfig, device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return Swintormer(config).to(device, dtype).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def images(config: NetworkConfig, count: int, tile: int, device: str, dtype: torch.dtype) -> Tensor:
    x = torch.rand(count, config.in_channels, tile, tile, device=device).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def serves(by: str, out: Path, dtype: torch.dtype) -> bool:
    """Whether it is worth trying with a whole network."""
    return by != "cuda" or (dtype != torch.float32 and checks.raised("swda_block", out) is None)


def time_network(
    meter: Meter, preset: str, dtype: torch.dtype, backends: tuple[str, ...], tile: int = TILE, tiles: int = TILES
) -> None:
    """Forward of a picture's tiles at once, as launches and as the graph that `Deblurrer` takes; kernels to the log."""
    config, device = PRESETS[preset], meter.device
    net, x = make_network(config, device, dtype), images(config, tiles, tile, device, dtype)
    exact = forward("reference", make_network(config, device, torch.float64), x[:1].double())
    macs = count_macs(config, tile, tile).total * tiles
    told: Any = {"what": preset, "case": f"{tiles} tiles of {tile}", "dtype": dtype, "macs": macs}
    eager_ms = NAN
    for by, backend in sides(backends):
        if not serves(by, meter.out, dtype):
            continue
        call = partial(forward, backend, net)
        error = cases.or_told(lambda: relative(call(x[:1]), exact))  # noqa: B023
        if error is None:
            continue
        peak, ms = peak_mb(partial(call, x), device), median_ms(partial(call, x), device)
        eager_ms = ms if by == "eager" else eager_ms
        meter.row(**told, by=by, ms=ms, eager_ms=eager_ms, peak_mb=peak, error=error)
        graph = GraphedForward(net, function=call)
        replay = partial(_graphed, graph, x)
        replay(), replay()
        if graph.reason is None and device != "cpu":
            ms = median_ms(replay, device)
            meter.row(**told, by=by, launched="graph", ms=ms, eager_ms=eager_ms, error=error)
        else:
            print(f"{preset} by {by} without a graph: {graph.reason or 'there are none on a CPU'}", flush=True)
        if by != "eager":
            cases.or_told(profile, partial(call, x), by, device)


def time_picture(meter: Meter, preset: str, backends: tuple[str, ...], size: tuple[int, int] = PICTURE) -> None:
    """A picture that lies on the GPU through `Deblurrer`, with each backend and as selection takes them ("automatic").

    Its tiles go in batches of 16, and are cut, blended and checked.
    """
    net = make_network(PRESETS[preset], meter.device, BFLOAT16)
    picture = images(PRESETS[preset], 1, TILE, meter.device, BFLOAT16)
    picture = nn.functional.interpolate(picture, size)
    told: Any = {"what": preset, "case": f"picture of {size[1]}x{size[0]}", "dtype": BFLOAT16}
    eager_ms = NAN
    for by, backend in (*sides(backends), ("automatic", None)):
        if not serves(by, meter.out, BFLOAT16):
            continue
        deblurrer = Deblurrer(net, tile=TILE)
        with nullcontext() if backend is None else sk.use_backend(backend):
            if cases.or_told(deblurrer, picture) is None:
                continue
            deblurrer(picture)
            ms = median_ms(partial(deblurrer, picture), meter.device)
        reason = deblurrer.forward.reason or ("there are none on a CPU" if meter.device == "cpu" else None)
        if reason is not None:
            print(f"{preset}, a picture by {by} without a graph: {reason}", flush=True)
        eager_ms = ms if by == "eager" else eager_ms
        meter.row(**told, by=by, launched="plain" if reason else "graph", ms=ms, eager_ms=eager_ms)


def time_training(
    meter: Meter, preset: str, dtype: torch.dtype, backends: tuple[str, ...], tile: int = TILE, batch: int = TRAINED
) -> None:
    """Forward and backward of a batch, with gradients of all parameters."""
    net = make_network(PRESETS[preset], meter.device, dtype)
    x = images(PRESETS[preset], batch, tile, meter.device, dtype)

    def step(backend: str) -> None:
        with sk.use_backend(backend):
            net(x).abs().mean().backward()
        net.zero_grad(set_to_none=True)

    eager_ms = NAN
    told: Any = {"what": preset, "case": f"batch {batch} of {tile}", "dtype": dtype, "passes": "both"}
    for by, backend in sides(backends):
        if not serves(by, meter.out, dtype):
            continue
        turn = partial(step, backend)
        peak = cases.or_told(peak_mb, turn, meter.device)
        if peak is None:
            continue
        ms = median_ms(turn, meter.device)
        eager_ms = ms if by == "eager" else eager_ms
        meter.row(**told, by=by, ms=ms, eager_ms=eager_ms, peak_mb=peak)


def time_steps(meter: Meter, batch: int, backends: tuple[str, ...], tile: int = TILE) -> None:
    """Whole steps under autocast as the trainer takes them (losses, clipping, AdamW, average), launched and graphed."""
    from swintormer.training.config import RestorationConfig
    from swintormer.training.run import RestorationRun

    eager_ms, pairs = NAN, torch.rand(2, batch, 3, tile, tile, device=meter.device)
    macs = count_macs(PRESETS["small"], tile, tile).total * batch
    told: Any = {"what": "training step", "case": f"small, batch {batch} of {tile}", "dtype": BFLOAT16}
    for by, backend in sides(backends):
        if not serves(by, meter.out, BFLOAT16):
            continue
        for graph in (False, True):
            config = RestorationConfig(
                out=meter.out, batch=batch, crop=tile, dtype="bfloat16", fourier=0.1, channels_last=True, graph=graph
            )
            run = RestorationRun(config, torch.device(meter.device))
            with sk.use_backend(backend):
                step = partial(run.train_step, *pairs)
                if cases.or_told(lambda: [step() for _ in range(4)]) is None:  # noqa: B023
                    continue
                ms = median_ms(step, meter.device, 1.0)
            launched = "graph" if graph and run.graphs is not None and run.graphs.taken else "plain"
            eager_ms = ms if by == "eager" and not graph else eager_ms
            meter.row(**told, by=by, passes="both", launched=launched, ms=ms, macs=macs, eager_ms=eager_ms)


def time_compiled_block(meter: Meter, case: str, tiles: int = TILES) -> None:
    """swda_block of the reference."""
    arguments, _ = cases.given("swda_block", case, meter.device, tiles)
    compiled = torch.compile(sk.swda_block)
    turns = [partial(on, "reference", compiled, copy, {}) for copy in rotated(arguments, meter.device)]
    ms = rotating_ms(turns, meter.device, 0.1)
    meter.row(what="swda_block", case=case, dtype=BFLOAT16, by="compile", ms=ms)


def time_compiled_network(meter: Meter, tile: int = TILE, tiles: int = TILES) -> None:
    """The released network with mode="max-autotune", which times Triton kernels; for a CPU there are none."""
    config = PRESETS["released"]
    net, x = make_network(config, meter.device, BFLOAT16), images(config, tiles, tile, meter.device, BFLOAT16)
    compiled = torch.compile(net, mode=None if meter.device == "cpu" else "max-autotune")
    ms = median_ms(partial(forward, "reference", compiled, x), meter.device)
    macs = count_macs(config, tile, tile).total * tiles
    meter.row(what="released", case=f"{tiles} tiles of {tile}", dtype=BFLOAT16, by="compile", ms=ms, macs=macs)


def _graphed(graph: GraphedForward, x: Tensor) -> Tensor:
    with torch.no_grad():
        return graph(x)


def profile(call: Any, by: str, device: str) -> None:
    """The kernels of a call that take longest, to the log."""
    if device == "cpu":
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    times = [(event.self_device_time_total, event.count, event.key) for event in profiled.key_averages()]
    for microseconds, count, name in sorted(times, reverse=True)[:25]:
        print(f"  {by}: {microseconds / 1e3:9.3f} ms, {count:5d} x {name[:100]}", flush=True)
