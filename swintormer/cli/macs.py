"""`swintormer macs`: the multiply-accumulates of a network per tile and per image, by stage."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swintormer.cli.messages import preset_named
from swintormer.errors import PriorError, SwintormerError

if TYPE_CHECKING:
    from torch import Tensor

    from swintormer.model.config import NetworkConfig
    from swintormer.prior.config import PriorConfig

PAPER_GMACS = 8.02  # arXiv 2401.05907, for one 256x256 tile


def macs(
    preset: Annotated[
        str | None, typer.Option(help="A network by name: small (the default), small-prior or released.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Count for the network in this file instead.")] = None,
    tile: Annotated[int, typer.Option(min=1, metavar="PIXELS", help="Size of the square tiles.")] = 256,
    stride: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Distance between neighbouring tiles (default: 220 of 256).")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="WIDTHxHEIGHT", help="Image to count for; can be given several times.")
    ] = None,
) -> None:
    """Count the multiply-accumulates (MACs) of a network, per tile and per image, by stage."""
    if preset is not None and weights is not None:
        raise SwintormerError("--preset and --weights both name a network: leave one of them out.")
    sizes = [parse_size(text) for text in size or ["1680x1120"]]
    if weights is None:
        config, prior = preset_named(preset or "small"), None
    else:
        from swintormer.checkpoint.checkpoint import checkpoint_info

        found = checkpoint_info(weights)
        config, prior = found.config, found.prior
    try:
        print(describe(config, tile, stride, sizes, prior))
    except PriorError as error:
        raise SwintormerError(
            f"{str(error).rstrip('.')}, or count a network without a prior, such as --preset small."
        ) from error


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of 1680x1120."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
    if not match:
        raise SwintormerError(f"--size takes width and height in pixels, such as 1680x1120, found {text!r}.")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one pass over a tile of height x width pixels.

    Attributes:
        stages: stage -> MACs, in the network's order. Outside its stages the network only adds.
    """

    height: int
    width: int
    stages: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.stages.values())


def count_macs(config: NetworkConfig, height: int, width: int) -> Cost:
    """Count with torch's FlopCounterMode on the meta device: no memory, no arithmetic, any size.

    It counts convolutions and matrix products (attention's too, which ptflops leaves out) at two flops for each
    multiply-accumulate, and nothing element-wise. Sides are padded to multiples of `config.stride`, as in a real pass;
    the position tables, made once a pass, are included. A network with fusion gets a latent at 1/8.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from swintormer.model.network import Swintormer
    from swintormer_kernels import use_backend

    with torch.device("meta"):
        net = Swintormer(config)
        tile = torch.empty(1, config.in_channels, height, width)
        latent = (
            torch.empty(1, config.prior_channels, -(-height // 8), -(-width // 8)) if config.prior_channels else None
        )
    counter = FlopCounterMode(display=False)
    with use_backend("reference"), counter, torch.no_grad():
        net(tile, prior=latent)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    prefix = type(net).__name__
    stages = {name: flops.get(f"{prefix}.{name}", 0) // 2 for name, _ in net.named_children()}
    return Cost(height, width, stages)


@dataclass(frozen=True)
class PriorCost:
    """Multiply-accumulates of sampling z_0 for a single tile.

    Attributes:
        encoder: for the blurred image; 0 if the denoiser takes the image itself.
        condition: the condition's part of the denoiser's first convolution, computed once.
        step: one pass of the denoiser.
        steps: number of passes.
    """

    encoder: int
    condition: int
    step: int
    steps: int

    @property
    def total(self) -> int:
        return self.encoder + self.condition + self.steps * self.step


def count_prior_macs(config: PriorConfig, height: int, width: int) -> PriorCost:
    """Count as `count_macs`, with sides rounded up to whole latent positions at the denoiser's deepest level."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from swintormer.prior.checkpoint import make_prior

    def count(work: Callable[[], Tensor]) -> tuple[int, Tensor]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result = work()
        return counter.get_total_flops() // 2, result

    with torch.device("meta"):
        prior = make_prior(config)
        grid = prior.grid(height, width)
        rows, columns = grid.rows.length, grid.columns.length
        image = torch.empty(1, 3, prior.factor * rows, prior.factor * columns)
        z = torch.empty(1, prior.latent_channels, rows, columns)
        encoder, condition = count(lambda: prior.condition(image))
        first, part = count(lambda: prior.condition_part(condition))
        step, _ = count(lambda: prior.predict(z, torch.zeros(1, dtype=torch.long), part))
    return PriorCost(encoder, first, step, config.sampling.steps)


def describe(
    config: NetworkConfig,
    tile: int,
    stride: int | None,
    sizes: list[tuple[int, int]],
    prior: PriorConfig | None = None,
) -> str:
    """The table that `swintormer macs` prints, with the prior's MACs for a network that takes one.

    Args:
        stride: None for the default of that tile.
        sizes: (width, height) of images.
        prior: None for the one of `PRIORS` whose latent has the network's channels, if any.
    """
    from swintormer.execution.tiling import default_stride, make_grid
    from swintormer.prior.config import PRIORS

    stride = default_stride(tile) if stride is None else stride
    cost = count_macs(config, tile, tile)
    columns, notes = {f"tile {tile}x{tile}": cost.stages}, []
    for width, height in sizes:
        grid = make_grid(height, width, tile, stride)
        whole = cost if min(width, height) >= tile else count_macs(config, min(tile, height), min(tile, width))
        columns[f"{width}x{height}"] = {stage: len(grid) * macs for stage, macs in whole.stages.items()}
        tiles = "tile" if len(grid) == 1 else "tiles"
        notes.append(
            f"{width}x{height} pixels: {len(grid)} {tiles} of {whole.width}x{whole.height}, stride {stride}: "
            f"{len(grid) * whole.total / 1e9:,.1f} GMAC"
        )
    lines = ["GMAC by stage (torch FlopCounterMode)", "", *_table(columns), "", *notes]
    prior = prior or next((p for p in PRIORS.values() if p.latent_channels == config.prior_channels), None)
    return "\n".join(lines if prior is None else [*lines, "", *_prior_lines(cost, prior)])


def _prior_lines(network: Cost, config: PriorConfig) -> list[str]:
    """Network and prior for one tile, with the paper's figure if it is 256x256."""
    prior = count_prior_macs(config, network.height, network.width)
    rows = {
        "restoration, with fusion": network.total,
        "prior: encoder": prior.encoder,
        "prior: condition": prior.condition,
        "prior: one step": prior.step,
        f"prior, {prior.steps} steps": prior.total,
        "sum": network.total + prior.total,
    }
    lines = [f"GMAC with the prior, tile {network.width}x{network.height}", ""]
    lines += [f"{name:<28} {macs / 1e9:>8,.3f}" for name, macs in rows.items()]
    if (network.height, network.width) == (256, 256):
        lines.append(f"{'the paper, one iteration':<28} {PAPER_GMACS:>8.3f}")
    return lines


def _table(columns: dict[str, dict[str, int]]) -> list[str]:
    """Rows of a table with the GMAC of each stage and its share of the column's sum."""
    rows = [f"{'':<20}" + "".join(f" {name:>20}" for name in columns)]
    sums = [sum(stages.values()) for stages in columns.values()]
    for stage in next(iter(columns.values())):
        cells = zip((stages[stage] for stages in columns.values()), sums, strict=True)
        rows.append(f"{stage:<20}" + "".join(f" {macs / 1e9:>12,.3f} {macs / total:>7.1%}" for macs, total in cells))
    return [*rows, f"{'sum':<20}" + "".join(f" {total / 1e9:>12,.3f} {1:>7.1%}" for total in sums)]
