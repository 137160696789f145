"""Times of the latent diffusion's denoisers (`swintormer.prior`): each prior, one step and all of them (eta 0).

Eager is diffusers' own in channels_last: UNet2DModel on z_t and condition, concatenated, and DDIMScheduler.step;
optimized is `LatentPrior`, also as CUDA graphs, whose half of the first convolution for the condition was made before.
z_t is float32 between the steps of both, and its noise the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

import swintormer_kernels as sk
from bench.gpu.calls import relative
from bench.gpu.cases import or_told
from bench.gpu.meter import DTYPES, Meter
from bench.gpu.timing import median_ms
from bench.prior import by_diffusers
from swintormer.execution.cuda_graph import capture_graph
from swintormer.prior.checkpoint import make_prior
from swintormer.prior.config import PRIORS, PriorConfig
from swintormer.prior.model import LatentPrior

MEASURED = ("compact", "ldm-sr")
SIDES = (32, 64, 128)  # of the latents


def run(out: Path, device: str, backends: tuple[str, ...]) -> None:
    """Whatever backends automatic selection takes."""
    meter = Meter("priors", out, device)
    for side in SIDES:
        for name in MEASURED:
            for dtype in DTYPES:
                or_told(time_unet, meter, name, PRIORS[name], side, dtype)


def time_unet(meter: Meter, name: str, config: PriorConfig, side: int, dtype: torch.dtype) -> None:
    """Rows of one prior at one latent: a step, and all steps, each eager and optimized, the latter as a graph, too."""
    torch.manual_seed(0)
    prior = make_prior(config).to(meter.device, dtype).to(memory_format=torch.channels_last).eval()
    given = prior.denoiser.config["in_channels"]
    x = torch.randn(1, given, side, side, device=meter.device)
    z, condition = x[:, : prior.latent_channels].contiguous(), x[:, prior.latent_channels :].to(dtype)
    plain: dict[str, tuple[Tensor, float]] = {}
    for by, made in (("eager", _eager), ("optimized", _optimized)):
        (sk.restore if by == "eager" else sk.optimize)(prior.denoiser)
        for what, (function, inputs) in made(prior, z, condition).items():
            common: Any = {"what": f"{name} {what}", "case": f"latent {side}", "dtype": dtype}
            with torch.no_grad():
                result = function(*inputs)
                ms = median_ms(partial(function, *inputs), meter.device)
                before, eager_ms = plain.setdefault(what, (result, ms))
                meter.row(**common, by=by, ms=ms, eager_ms=eager_ms, error=relative(result, before.double()))
                if by == "optimized" and meter.device != "cpu":
                    replay = capture_graph(function, *inputs)
                    error = relative(replay(*inputs), before.double())
                    ms = median_ms(partial(replay, *inputs), meter.device)
                    meter.row(**common, by="optimized", launched="graph", ms=ms, eager_ms=eager_ms, error=error)


Work: TypeAlias = dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]
"""What is timed -> the function and its arguments."""


def _eager(prior: LatentPrior, z: Tensor, condition: Tensor) -> Work:
    time = torch.tensor([prior.schedule(prior.sampling.steps)[0].time], device=z.device)

    def step(z: Tensor, condition: Tensor) -> Tensor:
        predicted: Tensor = prior.denoiser(torch.cat((z.to(condition), condition), dim=1), time).sample
        return predicted

    return {"step": (step, (z, condition)), "sample": (partial(by_diffusers, prior, eta=0.0), (z, condition))}


def _optimized(prior: LatentPrior, z: Tensor, condition: Tensor) -> Work:
    schedule = prior.schedule(prior.sampling.steps)
    times = torch.tensor([[step.time for step in schedule]], device=z.device)
    with torch.no_grad():
        part = prior.condition_part(condition)
    sample = partial(prior.all_steps, schedule=schedule, eta=0.0)
    return {
        "step": (prior.predict, (z.to(condition), times[:, 0], part)),
        "sample": (sample, (z, part, times, z.new_empty(1, 0))),
    }
