"""What the prior costs: multiply-accumulates, memory and time of a step and of a sample, diffusers' own beside ours.

`python bench/prior.py [compact|ldm-sr] [SIDE ...]` prints a row for each latent side (`detail` has the sizes of
`compact`). diffusers' is UNet2DModel on z_t and condition, concatenated, and DDIMScheduler.step, eager; ours is
`LatentPrior`. Random weights; in turn, medians.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import swintormer_kernels as sk
from swintormer.cli_macs import count_prior_macs
from swintormer.prior import LatentPrior
from swintormer.prior_config import PRIORS
from swintormer.prior_weights import make_prior
from swintormer_kernels.timing import in_turn, peak_memory

ROUNDS = 5
SIDES = (32, 64, 128)
LARGEST_SAMPLE = 2e12  # multiply-accumulates: ten seconds and more; beyond, the sample is steps times a step


def by_diffusers(prior: LatentPrior, image: Tensor) -> Tensor:
    """A sample as diffusers' pipelines make it."""
    scheduler = prior.scheduler
    scheduler.set_timesteps(prior.sampling.steps)
    condition = prior.condition(image)
    z = torch.randn(1, prior.latent_channels, *condition.shape[2:])
    for time in scheduler.timesteps:
        predicted = prior.denoiser(torch.cat((z, condition), dim=1), time).sample
        z = scheduler.step(predicted, time, z, eta=prior.sampling.eta).prev_sample
    return z


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
        work |= {"sample, diffusers": lambda: by_diffusers(theirs, image), "sample, ours": lambda: prior.sample(image)}
    return work


def row(name: str, prior: LatentPrior, side: int) -> str:
    """A row of the table."""
    pixels = prior.factor * side
    cost = count_prior_macs(PRIORS[name], pixels, pixels)
    work = turns(prior, side, whole=cost.total <= LARGEST_SAMPLE)
    seconds = {turn: 1e3 * statistics.median(times) for turn, times in in_turn(work, ROUNDS).items()}
    memory = {turn: peak_memory(work[turn]) / 1e6 for turn in ("step, diffusers", "step, ours")}
    cells = [f"{name} {side}x{side}", f"{cost.step / 1e9:.2f}", f"{cost.total / 1e9:.2f}"]
    cells += [f"{memory[turn]:.1f}" for turn in memory]
    cells += [f"{seconds[turn]:.1f}" if turn in seconds else "" for turn in COLUMNS[5:]]
    return "| " + " | ".join(cells) + " |"


COLUMNS = ("GMAC step", "GMAC sample", "step, diffusers, MB", "step, ours, MB")
COLUMNS = ("latent", *COLUMNS, "step, diffusers", "step, ours", "sample, diffusers", "sample, ours")


def main(arguments: list[str]) -> None:
    names = [word for word in arguments if not word.isdigit()] or [
        "compact",
        "ldm-sr",
    ]  # "detail" has the first's sizes
    sides = [int(word) for word in arguments if word.isdigit()] or list(SIDES)
    print("| " + " | ".join(column + " ms" * (i > 4) for i, column in enumerate(COLUMNS)) + " |")
    print("|---|" + "---:|" * (len(COLUMNS) - 1))
    for name in names:
        torch.manual_seed(0)
        config = PRIORS[name]
        prior = make_prior(config).eval()
        prior.sampling = prior.sampling.model_copy(update={"piece": 128})
        with torch.inference_mode():
            for side in sides:
                print(row(name, prior, side), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
