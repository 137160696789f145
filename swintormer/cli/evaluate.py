"""`swintormer evaluate`: how well a network restores, on your pictures or on the held-out photographs."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer

from swintormer.errors import SwintormerError

if TYPE_CHECKING:
    from swintormer.checkpoint.checkpoint import Checkpoint
    from swintormer.evaluation.scores import Score


def evaluate(
    weights: Annotated[Path | None, typer.Option(help="Network to measure (default: the installed one).")] = None,
    blurred: Annotated[Path | None, typer.Option(help="Folder of blurred pictures.")] = None,
    sharp: Annotated[Path | None, typer.Option(help="Folder of the sharp pictures, with the same names.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write every score to this file.")] = None,
    prior: Annotated[
        bool, typer.Option("--prior", help="Measure the installed network with a prior, with and without the prior.")
    ] = False,
    side: Annotated[
        int | None, typer.Option(min=7, help="Largest side of the held-out photographs, in pixels (default: 384).")
    ] = None,
    network_only: Annotated[
        bool, typer.Option("--network-only", help="Leave out classical deconvolution, the slow part.")
    ] = False,
) -> None:
    """Measure how well a network restores: PSNR and SSIM of its results, compared with the blurred pictures.

    --blurred and --sharp measure your own pairs of pictures. Without them, the held-out photographs of the model card
    are measured, with classical deconvolution for comparison.
    """
    from swintormer.checkpoint.checkpoint import default_weights
    from swintormer.evaluation import scores

    if (blurred is None) != (sharp is None):
        raise SwintormerError("Pairs need both folders, --blurred and --sharp.")
    if prior and weights is not None:
        raise SwintormerError("--prior selects installed weights: leave it out; a prior in --weights is used anyway.")
    weights = weights or default_weights("small-prior" if prior else "small")
    if blurred is None or sharp is None:
        print(_heldout(weights, csv, side, network_only))
        return
    if side is not None or network_only:
        raise SwintormerError("--side and --network-only are for the held-out photographs: leave them out for folders.")
    # Results of 16 bits, so that rounding to 8 does not enter the scores.
    methods = scores.network_methods(_load(weights), levels=65535)
    found = list(scores.folder_scores(methods, blurred, sharp))
    if csv is not None:
        scores.write_csv(found, csv)
    print(scores.table(found, "picture"))


def _heldout(weights: Path, csv: Path | None, side: int | None, network_only: bool) -> str:
    """The tables of the model card."""
    from swintormer.evaluation import heldout, scores
    from swintormer.evaluation.classical import CLASSICAL

    side = side or heldout.SIDE
    networks = scores.network_methods(_load(weights))
    found = list(scores.heldout_scores(networks | ({} if network_only else CLASSICAL), side=side))
    if csv is not None:
        scores.write_csv(found, csv)
    shown = scores.with_best_classical(found)
    sharp = scores.sharp_scores(networks[scores.NETWORK], side)
    return "\n\n".join([scores.table(shown, "degradation"), scores.table(shown, "picture"), *_sharp(sharp)])


def _load(weights: Path) -> Checkpoint:
    from swintormer.cli.deblur import Settings, read_weights

    return read_weights(Settings(weights))


def _sharp(scores: list[Score]) -> list[str]:
    """A sentence on what the network does to photographs that are sharp already."""
    finite = [score.psnr for score in scores if math.isfinite(score.psnr)]
    if not finite:
        return []
    return [f"Sharp photographs stay within {min(finite):.1f} dB of themselves, {mean(finite):.1f} dB on average."]
