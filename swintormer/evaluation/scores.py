"""Scores of restored pictures: pairs in folders, and the held-out photographs with fixed degradations."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from swintormer.checkpoint.checkpoint import Checkpoint
from swintormer.errors import SwintormerError
from swintormer.evaluation import heldout
from swintormer.evaluation.classical import CLASSICAL
from swintormer.evaluation.metrics import mae, psnr, ssim
from swintormer.images.files import replacing
from swintormer.inference.deblurrer import Deblurrer

Array: TypeAlias = NDArray[np.float32]
Restore: TypeAlias = Callable[[Array], Array]
"""(H, W, C) in [0, 1] -> the same, restored."""

INPUT, NETWORK, BEST_CLASSICAL = "input", "network", "best classical"
NO_PRIOR = "network, no prior"  # the same as a z_0 of zeros: the fusion adds nothing


@dataclass(frozen=True)
class Score:
    """Scores of one picture with one degradation, restored by one method.

    PSNR in dB (inf if equal), structural similarity, mean absolute error.
    `degradation` is empty for pairs of pictures in folders.
    """

    picture: str
    degradation: str
    method: str
    psnr: float
    ssim: float
    mae: float


def network_method(deblur: Deblurrer, levels: int = 255) -> Restore:
    """A network as a method on [0, 1] floats, through 8-bit files (`levels` 255) or 16-bit ones (65535)."""
    dtype = np.uint8 if levels == 255 else np.uint16

    def restore(image: Array) -> Array:
        pixels = np.rint(image * levels).astype(dtype)
        return (deblur.restore_array(pixels) / levels).astype(np.float32)

    return restore


def network_methods(checkpoint: Checkpoint, levels: int = 255) -> dict[str, Restore]:
    """The network; with and without the prior if its weights contain one, which shows the gain from z_0."""
    methods = {NETWORK: network_method(Deblurrer(checkpoint), levels)}
    if checkpoint.prior is not None:
        methods[NO_PRIOR] = network_method(Deblurrer(checkpoint, prior=False), levels)
    return methods


def heldout_scores(
    methods: Mapping[str, Restore],
    degradations: Sequence[heldout.Degradation] = heldout.DEGRADATIONS,
    photographs: Sequence[str] = heldout.PHOTOGRAPHS,
    side: int = heldout.SIDE,
) -> Iterator[Score]:
    """Yield a score for every photograph, degradation and method, and for the input itself."""
    for name in photographs:
        image = heldout.photograph(name)
        for number, degradation in enumerate(degradations):
            degraded, truth = heldout.degrade(image, degradation, seed=number, side=side)
            for method, restore in {INPUT: lambda x: x, **methods}.items():
                yield _score(Path(name).stem, degradation.name, method, restore(degraded), truth)


def folder_scores(methods: Mapping[str, Restore], blurred: Path, sharp: Path) -> Iterator[Score]:
    """Yield a score for every pair of pictures with the same name in two folders; alpha is ignored.

    Raises:
        SwintormerError: a folder is missing or empty, a picture has no partner or one of another shape.
    """
    from swintormer.images.io import SUFFIXES, read_image

    for folder in (blurred, sharp):
        if not folder.is_dir():
            raise SwintormerError(f"There is no folder {folder}.")
    files = sorted(path for path in blurred.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SwintormerError(f"The folder {blurred} holds no picture ({', '.join(SUFFIXES)}).")
    missing = [path.name for path in files if not (sharp / path.name).is_file()]
    if missing:
        raise SwintormerError(f"{len(missing)} pictures have no partner in {sharp}, the first is {missing[0]}.")
    for path in files:
        image, truth = (
            (source.pixels / np.iinfo(source.pixels.dtype).max).astype(np.float32)
            for source in (read_image(path), read_image(sharp / path.name))
        )
        if image.shape != truth.shape:
            raise SwintormerError(
                f"{path.name} must have the same size and channels in both folders, found {image.shape} in {blurred} "
                f"and {truth.shape} in {sharp}."
            )
        for method, restore in {INPUT: lambda x: x, **methods}.items():
            yield _score(path.name, "", method, restore(image), truth)


def _score(picture: str, degradation: str, method: str, restored: Array, truth: Array) -> Score:
    return Score(picture, degradation, method, psnr(restored, truth), ssim(restored, truth), mae(restored, truth))


def with_best_classical(scores: Iterable[Score]) -> list[Score]:
    """Replace the classical methods of each picture and degradation by the one with the highest PSNR."""
    kept: list[Score] = []
    best: dict[tuple[str, str], Score] = {}
    for score in scores:
        if score.method not in CLASSICAL:
            kept.append(score)
            continue
        key = (score.picture, score.degradation)
        if key not in best or score.psnr > best[key].psnr:
            best[key] = score
    return kept + [Score(**(asdict(score) | {"method": BEST_CLASSICAL})) for score in best.values()]


def gains(scores: Iterable[Score], method: str = NETWORK) -> dict[tuple[str, str], float]:
    """Gain in PSNR over the input, in dB, by (picture, degradation)."""
    by_method: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for score in scores:
        by_method[score.method][score.picture, score.degradation] = score.psnr
    return {key: value - by_method[INPUT][key] for key, value in by_method[method].items()}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def table(scores: Sequence[Score], by: str) -> str:
    """Markdown: mean PSNR and SSIM of every method for each value of `by` ("degradation" or "picture"), and over all.

    The last rows hold each method's mean, worst and best gain in PSNR over the input.
    """
    methods = list(dict.fromkeys(score.method for score in scores))
    lines = [
        f"| {by} | " + " | ".join(f"{method}, dB (SSIM)" for method in methods) + " |",
        "|---|" + "---:|" * len(methods),
    ]
    groups = [*dict.fromkeys(getattr(score, by) for score in scores), None]
    for group in groups:
        cells = []
        for method in methods:
            rows = [s for s in scores if s.method == method and group in (None, getattr(s, by))]
            cells.append(f"{_mean(s.psnr for s in rows):.2f} ({_mean(s.ssim for s in rows):.3f})")
        lines.append(f"| {'**all**' if group is None else group} | " + " | ".join(cells) + " |")
    for name, reduce in (("mean gain", _mean), ("worst gain", min), ("best gain", max)):
        # Adding 0 turns the -0.00 that rounding may give into +0.00.
        values = [f"{round(reduce(list(gains(scores, method).values())), 2) + 0.0:+.2f}" for method in methods]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def write_csv(scores: Iterable[Score], path: Path) -> None:
    """Write all scores, one per line, with the digits that float32 pictures carry."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(field.name for field in fields(Score))
    for s in scores:
        rows.writerow([s.picture, s.degradation, s.method, f"{s.psnr:.4f}", f"{s.ssim:.5f}", f"{s.mae:.6f}"])
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def sharp_scores(restore: Restore, side: int = heldout.SIDE) -> list[Score]:
    """Scores of `restore` on sharp photographs: how much it alters what needs no restoring."""
    scores = heldout_scores({NETWORK: restore}, (heldout.SHARP,), side=side)
    return [score for score in scores if score.method == NETWORK]
