"""How well a network restores: pairs in folders, and the held-out photographs with fixed blurs.

`python -m swintormer.evaluation.scores` prints the held-out table of the model card; `--csv` keeps every row of it.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
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

UNTOUCHED, NETWORK, BEST_CLASSICAL = "untouched", "network", "best classical"
NO_PRIOR = "network, no prior"  # the fusion adds nothing, as a z_0 of zeros would


@dataclass(frozen=True)
class Score:
    """One picture with one fault, restored by one method: PSNR in dB (inf where equal), SSIM, mean absolute error."""

    picture: str
    fault: str
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
    """The network as it restores, and where its weights came with a prior also without: what z_0 is worth."""
    methods = {NETWORK: network_method(Deblurrer(checkpoint), levels)}
    if checkpoint.prior is not None:
        methods[NO_PRIOR] = network_method(Deblurrer(checkpoint, prior=False), levels)
    return methods


def heldout_scores(
    methods: Mapping[str, Restore],
    faults: Sequence[heldout.Fault] = heldout.FAULTS,
    photographs: Sequence[str] = heldout.PHOTOGRAPHS,
    side: int = heldout.SIDE,
) -> Iterator[Score]:
    """A score for every photograph, fault and method, and for leaving the picture untouched, as they are reached."""
    for name in photographs:
        image = heldout.photograph(name)
        for number, fault in enumerate(faults):
            spoiled, truth = heldout.spoil(image, fault, seed=number, side=side)
            for method, restore in {UNTOUCHED: lambda x: x, **methods}.items():
                yield _score(Path(name).stem, fault.name, method, restore(spoiled), truth)


def folder_scores(methods: Mapping[str, Restore], blurred: Path, sharp: Path) -> Iterator[Score]:
    """The same for pairs of picture files of the same name in two folders; alpha is left out.

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
        for method, restore in {UNTOUCHED: lambda x: x, **methods}.items():
            yield _score(path.name, "", method, restore(image), truth)


def _score(picture: str, fault: str, method: str, restored: Array, truth: Array) -> Score:
    return Score(picture, fault, method, psnr(restored, truth), ssim(restored, truth), mae(restored, truth))


def with_best_classical(scores: Iterable[Score]) -> list[Score]:
    """Replace the classical methods of each picture and fault by the one of highest PSNR: an expert's lucky choice."""
    kept: list[Score] = []
    best: dict[tuple[str, str], Score] = {}
    for score in scores:
        if score.method not in CLASSICAL:
            kept.append(score)
            continue
        key = (score.picture, score.fault)
        if key not in best or score.psnr > best[key].psnr:
            best[key] = score
    return kept + [Score(**(asdict(score) | {"method": BEST_CLASSICAL})) for score in best.values()]


def gains(scores: Iterable[Score], method: str = NETWORK) -> dict[tuple[str, str], float]:
    """PSNR in dB over leaving it untouched, by (picture, fault)."""
    by_method: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for score in scores:
        by_method[score.method][score.picture, score.fault] = score.psnr
    return {key: value - by_method[UNTOUCHED][key] for key, value in by_method[method].items()}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def table(scores: Sequence[Score], by: str) -> str:
    """Markdown: mean PSNR and SSIM of every method for each value of `by` ("fault" or "picture"), and over all.

    A method's gain in the last rows is its PSNR less that of leaving the picture untouched: mean, worst and best row.
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
        # Adding 0 turns what rounding makes -0.00 into +0.00.
        values = [f"{round(reduce(list(gains(scores, method).values())), 2) + 0.0:+.2f}" for method in methods]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def write_csv(scores: Iterable[Score], path: Path) -> None:
    """All scores, a line each; PSNR and SSIM to the digits that float32 pictures carry."""
    with replacing(path) as file:
        lines: list[list[str]] = [[field.name for field in fields(Score)]]
        for s in scores:
            lines.append([s.picture, s.fault, s.method, f"{s.psnr:.4f}", f"{s.ssim:.5f}", f"{s.mae:.6f}"])
        rows = _Rows()
        csv.writer(rows, lineterminator="\n").writerows(lines)
        file.write("".join(rows.text).encode())


class _Rows:
    """What csv.writer needs of a file."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def write(self, line: str) -> None:
        self.text.append(line)


def sharp_scores(restore: Restore, side: int = heldout.SIDE) -> list[Score]:
    """Photographs that nothing ails, through `restore`: what it changes where nothing needs changing."""
    scores = heldout_scores({NETWORK: restore}, (heldout.SHARP,), side=side)
    return [score for score in scores if score.method == NETWORK]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m swintormer.evaluation.scores`."""
    from swintormer.checkpoint.checkpoint import default_weights, read_checkpoint

    parser = argparse.ArgumentParser(prog="python -m swintormer.evaluation.scores", description=__doc__)
    parser.add_argument("--weights", type=Path, help="checkpoint; without it the one that ships")
    parser.add_argument("--csv", type=Path, help="write every row here")
    parser.add_argument("--side", type=int, default=heldout.SIDE, help="largest side of the photographs, in pixels")
    parser.add_argument("--network-only", action="store_true", help="leave out classical deconvolution, the slow part")
    options = parser.parse_args(arguments)
    try:
        networks = network_methods(read_checkpoint(options.weights or default_weights()))
        methods = networks | ({} if options.network_only else CLASSICAL)
        scores = list(heldout_scores(methods, side=options.side))
        if options.csv:
            write_csv(scores, options.csv)
        shown = with_best_classical(scores)
        untouched = [score.psnr for score in sharp_scores(networks[NETWORK], options.side)]
    except SwintormerError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(shown, "fault"), table(shown, "picture"), sep="\n\n")
    finite = [value for value in untouched if math.isfinite(value)]
    if finite:
        print(f"\nSharp photographs stay within {min(finite):.1f} dB of themselves, {_mean(finite):.1f} dB on average.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
