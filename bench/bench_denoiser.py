"""Times a step of a diffusion denoiser: `pytest bench/bench_denoiser.py`; whole samples: `python -m bench.prior`.

diffusers' UNet2DModel as it comes (contiguous), the same in channels_last, and that one after `sk.optimize`, in turn.
`both` is a pass with the gradients of all weights, as in the prior's training; measured where it takes seconds.
`reference` in a row is the faster of diffusers' two layouts for `ldm-sr`, and the contiguous one, in which diffusers
loads a model, for `compact`; the other is printed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import swintormer_kernels as sk
from bench.measure import Row, make_row
from swintormer.prior.config import PRIORS
from swintormer_kernels.packed import kept_bytes
from swintormer_kernels.testing.timing import in_turn, peak_memory

diffusers = pytest.importorskip("diffusers")

COMPACT, LDM_SR = (PRIORS[name].denoiser for name in ("compact", "ldm-sr"))
# (sizes, latent, rounds, the layout that counts as the reference)
DENOISERS = {
    "compact, latent 32": (COMPACT, 32, 200, "contiguous"),
    "compact, latent 64": (COMPACT, 64, 100, "contiguous"),
    "compact, latent 128": (COMPACT, 128, 30, "contiguous"),
    "ldm-sr, latent 32": (LDM_SR, 32, 15, "channels_last"),
    "ldm-sr, latent 64": (LDM_SR, 64, 7, "channels_last"),
    "ldm-sr, latent 128": (LDM_SR, 128, 3, "channels_last"),
}

TRAINED = {"compact, latent 32": 20, "compact, latent 64": 10, "ldm-sr, latent 32": 3}
"""Rounds of forward and backward."""

Denoisers = dict[str, torch.nn.Module]


def denoisers(sizes: dict[str, Any]) -> Denoisers:
    """The same random weights three times: diffusers in both layouts, and optimised."""
    torch.manual_seed(0)
    contiguous = diffusers.UNet2DModel(**sizes).eval()
    channels_last = copy.deepcopy(contiguous).to(memory_format=torch.channels_last)
    optimised = copy.deepcopy(channels_last)
    report = sk.optimize(optimised)
    assert not report.kept, report
    return {"contiguous": contiguous, "channels_last": channels_last, "optimised": optimised}


def step(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return net(x, 501).sample


def gradients(net: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(net(x, 501).sample.square().mean(), list(net.parameters())))


@pytest.mark.parametrize("name", DENOISERS)
def bench_step(name, rows):
    sizes, side, rounds, reference = DENOISERS[name]
    nets, x = denoisers(sizes), torch.randn(1, sizes["in_channels"], side, side)
    inputs = {kind: x if kind == "contiguous" else x.contiguous(memory_format=torch.channels_last) for kind in nets}
    errors = errors_of(nets, x, reference)
    assert errors[0] <= 2 * errors[1], f"relative error {errors[0]:.3g}, diffusers' own {errors[1]:.3g}; not timed"
    turns = {kind: lambda kind=kind: step(nets[kind], inputs[kind]) for kind in nets}
    both = (math.nan, math.nan)
    if name in TRAINED:
        passes = {kind: lambda kind=kind: gradients(nets[kind], inputs[kind]) for kind in ("optimised", reference)}
        seconds = in_turn(passes, TRAINED[name])
        both = (median(seconds["optimised"]), median(seconds[reference]))
    rows.append(row(name, nets, turns, rounds, reference, errors, both))


def errors_of(nets: Denoisers, x: torch.Tensor, reference: str) -> tuple[float, float]:
    """||y - exact|| / ||exact|| of the optimised network and of the reference's layout, exact in float64."""
    exact = step(copy.deepcopy(nets["contiguous"]).double(), x.double())
    return tuple(((step(nets[kind], x) - exact).norm() / exact.norm()).item() for kind in ("optimised", reference))  # type: ignore[return-value]


def row(
    name: str,
    nets: Denoisers,
    turns: dict[str, Callable[[], torch.Tensor]],
    rounds: int,
    reference: str,
    errors: tuple[float, ...],
    both: tuple[float, float],
) -> Row:
    """Time `turns`, and print what fits in no row."""
    with FlopCounterMode(display=False) as counter:
        turns["contiguous"]()
    macs, packed = counter.get_total_flops() / 2, kept_bytes(nets["optimised"].parameters())
    seconds = {kind: median(found) for kind, found in in_turn(turns, rounds).items()}
    own, eager = seconds["optimised"], seconds[reference]
    peaks = {kind: peak_memory(turn) / 1e6 for kind, turn in turns.items()}
    print(
        f"\ndenoiser {name}: {macs / 1e9:.3g} GMAC; "
        + ", ".join(f"{kind} {1e3 * found:.4g} ms, peak {peaks[kind]:.1f} MB" for kind, found in seconds.items())
        + f"; {seconds['contiguous'] / own:.2f} times as fast as contiguous, "
        f"{seconds['channels_last'] / own:.2f} times as channels_last"
    )
    return make_row(
        op="denoiser",
        case=f"{name}, beside {reference}",
        backend="cpu",
        automatic="cpu",
        rounds=rounds,
        forward=own,
        reference=eager,
        both=both,
        macs=macs,
        peak_bytes=1e6 * peaks["optimised"],
        errors=errors,
        packed_bytes=packed,
    )
