"""What the prior costs: multiply-accumulates, memory and time of a step and of a sample, diffusers' own beside ours.

`python -m bench.prior [NAME ...] [SIDE ...]` prints a row for each prior and latent side, all by default. diffusers' is
UNet2DModel on z_t and condition, concatenated, and DDIMScheduler.step, eager; ours is `LatentPrior`. Random weights; in
turn, medians. MB are what torch holds at most above what it held before. "computed" marks a sample that was not run,
steps times a step, without the encoder; its memory is not known: "not run".
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import swintormer_kernels as sk
from swintormer.cli.macs import count_prior_macs
from swintormer.prior.checkpoint import make_prior
from swintormer.prior.config import PRIORS
from swintormer.prior.model import LatentPrior
from swintormer_kernels.testing.timing import in_turn, peak_memory

ROUNDS = 5
SIDES = (32, 64, 128)
LARGEST_SAMPLE = 2e12  # multiply-accumulates: ten seconds and more; beyond, the sample is steps times a step
BY = ("diffusers", "ours")
TURNS = tuple(f"{what}, {by}" for what in ("step", "sample") for by in BY)
COLUMNS = ("latent", "GMAC step", "GMAC sample", *(f"{turn}, {unit}" for unit in ("MB", "ms") for turn in TURNS))


def by_diffusers(prior: LatentPrior, z: Tensor, condition: Tensor, eta: float) -> Tensor:
    """All steps as diffusers' pipelines make them, from the noise z, which keeps its dtype."""
    scheduler = prior.scheduler
    scheduler.set_timesteps(prior.sampling.steps, device=z.device)
    for time in scheduler.timesteps:
        predicted = prior.denoiser(torch.cat((z.to(condition), condition), dim=1), time).sample
        z = scheduler.step(predicted.to(z), time, z, eta=eta).prev_sample
    return z


def sample_by_diffusers(prior: LatentPrior, image: Tensor) -> Tensor:
    """A sample for an image, noise and condition included."""
    condition = prior.condition(image)
    z = torch.randn(1, prior.latent_channels, *condition.shape[2:])
    return by_diffusers(prior, z, condition, prior.sampling.eta)


def turns(prior: LatentPrior, side: int, whole: bool) -> dict[str, Callable[[], object]]:
    """The work of a row, by name; `image` has a latent of that side, and goes in one piece."""
    image = torch.rand(1, 3, prior.factor * side, prior.factor * side)
    z, time = torch.randn(1, prior.latent_channels, side, side), torch.tensor(500)
    theirs = copy.deepcopy(prior)
    sk.restore(theirs.denoiser)
    condition = prior.condition(image)
    part = prior.condition_part(condition)
    work: dict[str, Callable[[], object]] = {
        "step, diffusers": lambda: theirs.denoiser(torch.cat((z, condition), dim=1), time),
        "step, ours": lambda: prior.predict(z, time, part),
    }
    if whole:
        work["sample, diffusers"] = lambda: sample_by_diffusers(theirs, image)
        work["sample, ours"] = lambda: prior.sample(image)
    return work


def _memory(run: Callable[[], object]) -> int:
    """Peak in bytes on one thread: with more, a sample runs on others, where the profiler does not look."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return peak_memory(run)
    finally:
        torch.set_num_threads(count)


def row(name: str, prior: LatentPrior, side: int) -> str:
    """A row of the table."""
    pixels = prior.factor * side
    cost = count_prior_macs(PRIORS[name], pixels, pixels)
    work = turns(prior, side, whole=cost.total <= LARGEST_SAMPLE)
    seconds = {turn: statistics.median(measured) for turn, measured in in_turn(work, ROUNDS).items()}
    memory = {turn: f"{_memory(run) / 1e6:.1f}" for turn, run in work.items()}
    times = {turn: f"{1e3 * median:.1f}" for turn, median in seconds.items()}
    for by in BY:
        computed = prior.sampling.steps * seconds[f"step, {by}"]
        times.setdefault(f"sample, {by}", f"{1e3 * computed:.0f} (computed)")
    cells = [f"{name} {side}x{side}", f"{cost.step / 1e9:.2f}", f"{cost.total / 1e9:.2f}"]
    cells += [memory.get(turn, "not run") for turn in TURNS] + [times[turn] for turn in TURNS]
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = (*PRIORS, *map(str, SIDES))
    parser.add_argument("words", nargs="*", metavar="NAME|SIDE", help=f"of {', '.join(words)}, or another side")
    asked = parser.parse_args(arguments).words
    unknown = [word for word in asked if word not in PRIORS and not word.isdigit()]
    if unknown:
        parser.error(f"there is no prior {unknown[0]!r}: choose from {', '.join(PRIORS)}, or give the side of a latent")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---:|" * (len(COLUMNS) - 1))
    for name in [word for word in asked if word in PRIORS] or PRIORS:
        torch.manual_seed(0)
        prior = make_prior(PRIORS[name]).eval()
        prior.sampling = prior.sampling.model_copy(update={"piece": 128})
        with torch.inference_mode():
            for side in [int(word) for word in asked if word.isdigit()] or SIDES:
                print(row(name, prior, side), flush=True)


if __name__ == "__main__":
    main()
