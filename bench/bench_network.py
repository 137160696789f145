"""Times the whole network on one tile: `pytest bench/bench_network.py`.

A tile goes through the reference, the cpu backend and torch's fastest float32 products in turn. `gemm_share` is the
share of the best of those, `fma_share` that of multiply-adds between registers; `peak_mb` counts what torch allocates
during the pass, without input, output and weights, `packed_mb` the packed weights, which stay.

Training steps, in float32 and under bfloat16 autocast, run as automatic selection chooses, in turn with the reference
in the same precision. Every step finds changed weights, as in training. Their `forward_ms` is that of a pass with
gradients; their errors are those of all gradients.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from statistics import median

import pytest
import torch

import swintormer_kernels as sk
from bench.measure import make_row
from swintormer import PRESETS, Swintormer
from swintormer.cli.bench import blocks_backends
from swintormer.cli.macs import count_macs
from swintormer_kernels.packed import kept_bytes
from swintormer_kernels.testing.timing import TorchRate, in_turn, peak_memory, peak_rate, timed

TILE = 256
ROUNDS, TRAINING_ROUNDS = 9, 5
TRAINED = {"small": (4, 128), "released": (1, 256)}
"""Batch and side of a training step."""


def network_and_tile(preset: str, side: int = TILE) -> tuple[Swintormer, torch.Tensor]:
    torch.manual_seed(0)
    net = Swintormer(PRESETS[preset]).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("body.bias"):  # as in trained weights; zero would let errors cancel
            torch.nn.init.normal_(parameter, std=0.1)
    return net, torch.rand(1, net.config.in_channels, side, side)


def forward(net: Swintormer, x: torch.Tensor, backend: str) -> torch.Tensor:
    with sk.use_backend(backend), torch.inference_mode():
        return net(x)


@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("preset", PRESETS)
def bench(preset, backend, benchmark, rows, notes):
    lacks = sk.backends()[backend]
    if lacks is not None:
        pytest.skip(lacks)
    net, x = network_and_tile(preset)
    error, reference_error = errors(net, x, backend)
    assert error <= 2 * reference_error, f"relative error {error:.3g} of {backend}, {reference_error:.3g} of eager"

    torch_rate = TorchRate()
    turns = {"reference": lambda: forward(net, x, "reference"), **torch_rate.turns}
    seconds: dict[str, list[float]] = {name: [] for name in turns}

    def others() -> None:
        for name, turn in turns.items():
            seconds[name].append(timed(turn))

    benchmark.group = f"network {preset}, one {TILE}x{TILE} tile"
    benchmark.pedantic(lambda: forward(net, x, backend), setup=others, rounds=ROUNDS, warmup_rounds=1)
    seconds = {name: measured[1:] for name, measured in seconds.items()}  # the first warmed up
    own, reference, rate = benchmark.stats.stats.median, median(seconds["reference"]), torch_rate.rate(seconds)
    macs = count_macs(net.config, TILE, TILE).total
    peak_flops = peak_rate()
    moved = 4 * (2 * x.numel() + sum(p.numel() for p in net.parameters()))
    rows.append(
        make_row(
            op="network",
            case=f"{preset}, one {TILE}x{TILE} tile",
            backend=backend,
            automatic="+".join(blocks_backends(net, x)),
            rounds=ROUNDS,
            forward=own,
            reference=reference,
            macs=macs,
            moved=moved,
            product_rate=rate,
            peak_bytes=peak(net, x, backend),
            errors=(error, reference_error),
            packed_bytes=kept_bytes(net.parameters()),
        )
    )
    shares = {
        what: f"{2 * macs / own / limit:.2f} of the {limit / 1e9:.0f} GFLOP/s {what} (reference "
        f"{2 * macs / reference / limit:.2f})"
        for what, limit in (("of multiply-adds", peak_flops), ("of torch's best product", rate))
    }
    live = {name: peak(net, x, name) / 1e6 for name in (backend, "reference")}
    notes.append(
        f"{preset}: {reference / own:.2f} times as fast as the reference; {'; '.join(shares.values())}; live "
        f"tensors at peak: {live[backend]:.1f} MB, reference {live['reference']:.1f} MB; packed weights: "
        f"{kept_bytes(net.parameters()) / 1e6:.1f} MB"
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", TRAINED)
def bench_training(preset, precision, rows, notes):
    """Forward and backward as automatic selection runs them, in turn with the reference in the same precision."""
    batch, side = TRAINED[preset]
    net, _ = network_and_tile(preset)
    x = torch.rand(batch, net.config.in_channels, side, side)

    def loss(backend: str | None) -> torch.Tensor:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
        with sk.use_backend(backend) if backend else nullcontext(), autocast:
            return net(x).float().square().mean()

    parameters = list(net.parameters())

    def step(backend: str | None) -> list[torch.Tensor]:
        with torch.no_grad():  # as after an optimizer's step: what was derived from the weights is made again
            torch._foreach_add_(parameters, 0.0)
        return list(torch.autograd.grad(loss(backend), parameters))

    found = [torch.cat([part.flatten() for part in step(backend)]) for backend in (None, "reference")]
    with sk.use_backend("reference"):
        wide = copy.deepcopy(net).double()
        parts = torch.autograd.grad(wide(x.double()).square().mean(), list(wide.parameters()))
    exact = torch.cat([part.flatten() for part in parts])
    error, reference_error = (((value - exact).norm() / exact.norm()).item() for value in found)
    # The gradient jumps where two logits tie for a row's maximum, and rounding decides that: measured ratios of the two
    # errors are 0.03 (small) and 6.5 (released).
    assert error <= 16 * reference_error, f"gradients: error {error:.3g}, {reference_error:.3g} of the reference"

    turns = {
        "forward": lambda: loss(None),
        "forward_reference": lambda: loss("reference"),
        "both": lambda: step(None),
        "both_reference": lambda: step("reference"),
    }
    seconds = {name: median(times) for name, times in in_turn(turns, TRAINING_ROUNDS).items()}
    macs = batch * count_macs(net.config, side, side).total
    case = f"{preset}, training, {batch} of {side}x{side}, {precision}"
    rows.append(
        make_row(
            op="training",
            case=case,
            backend="automatic",
            automatic="+".join(blocks_backends(net, x)),
            rounds=TRAINING_ROUNDS,
            forward=seconds["forward"],
            reference=seconds["forward_reference"],
            both=(seconds["both"], seconds["both_reference"]),
            macs=macs,
            peak_bytes=peak_memory(lambda: step(None)),
            errors=(error, reference_error),
            packed_bytes=kept_bytes(net.parameters()),
        )
    )
    needed = 6 * macs  # FLOPs: the forward pass, and twice as many for the two kinds of gradients
    notes.append(
        f"{case}: {seconds['both_reference'] / seconds['both']:.2f} times as fast as the reference, "
        f"{needed / seconds['both'] / peak_rate():.2f} of the rate of float32 multiply-adds (reference "
        f"{needed / seconds['both_reference'] / peak_rate():.2f})"
    )


@pytest.mark.parametrize("preset", PRESETS)
def bench_peak_over_sizes(preset, notes):
    """Peak of live tensors for whole images of 256 to 1024 pixels a side: linear in pixels."""
    peaks = {}
    for side in (256, 512, 1024):
        net, x = network_and_tile(preset, side)
        peaks[side] = peak(net, x, "cpu")
    growth = peaks[1024] / peaks[256]
    listed = ", ".join(f"{side}x{side} {size / 1e6:.1f} MB" for side, size in peaks.items())
    notes.append(f"{preset}, live tensors at peak: {listed}; 16 times the pixels take {growth:.1f} times as much")
    assert growth <= 16 * 1.05, "allocations beside the pixels may only shrink with the size"


@pytest.mark.parametrize("preset", PRESETS)
def bench_two_threads(preset, notes):
    """One thread against two, in turn."""
    net, x = network_and_tile(preset)
    before = torch.get_num_threads()

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        forward(net, x, "cpu")

    try:
        seconds = in_turn({str(n): lambda n=n: on(n) for n in (1, 2)}, ROUNDS)
    finally:
        torch.set_num_threads(before)
    notes.append(f"{preset}: two threads are {median(seconds['1']) / median(seconds['2']):.2f} times as fast as one")


def errors(net: Swintormer, x: torch.Tensor, backend: str) -> tuple[float, float]:
    """||y - exact|| / ||exact|| of `backend` and of the reference, exact in float64."""
    reference, own = forward(net, x, "reference"), forward(net, x, backend)
    exact = forward(net.double(), x.double(), "reference")
    net.float()
    return tuple(((y - exact).norm() / exact.norm()).item() for y in (own, reference))  # type: ignore[return-value]


def peak(net: Swintormer, x: torch.Tensor, backend: str) -> int:
    """Bytes of live tensors at peak beside input, output and weights; torch.profiler counts them."""
    forward(net, x, backend)  # packed weights are made once and stay
    output = x.numel() // x.shape[1] * net.config.out_channels * x.element_size()
    return peak_memory(lambda: forward(net, x, backend)) - output
