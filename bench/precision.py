"""What restoring in bfloat16 changes: decibels between its results and those in float32, worst and mean.

`python -m bench.precision [--model strong] [--side 384] [FOLDER ...]` restores the held-out photographs of
`swintormer evaluate` in each of their degradations, and the pictures of the folders as they are. Results are neither
clamped nor rounded. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray

from swintormer.checkpoint.checkpoint import read_checkpoint
from swintormer.cli.models import DEFAULT, MODELS
from swintormer.evaluation import heldout
from swintormer.evaluation.scores import photographs_in, pictures_below
from swintormer.inference.deblurrer import Deblurrer

Array = NDArray[np.float32]


def pictures(folders: list[Path], side: int) -> Iterator[tuple[str, str, Array]]:
    """(set, name, picture in [0, 1])."""
    for folder in folders:
        for name, picture in photographs_in(folder, pictures_below(folder)):
            yield folder.name, name, picture
    for label, degradations in (("held-out", heldout.DEGRADATIONS), ("camera", heldout.CAMERA_DEGRADATIONS)):
        for name in heldout.PHOTOGRAPHS:
            photograph = heldout.photograph(name)
            for seed, degradation in enumerate(degradations):
                yield label, f"{name}, {degradation.name}", heldout.degrade(photograph, degradation, seed, side)[0]


def decibels(changed: torch.Tensor, exact: torch.Tensor) -> float:
    """PSNR for a range of 1."""
    error = (changed.double() - exact.double()).square().mean().item()
    return -10 * math.log10(error) if error > 0 else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--model", choices=MODELS, default=DEFAULT)
    parser.add_argument("--side", type=int, default=heldout.SIDE, help="of the held-out photographs")
    options = parser.parse_args()
    model = MODELS[options.model]
    checkpoint = read_checkpoint(model.path())
    exact, changed = (Deblurrer(checkpoint, precision=kind, scales=model.scales) for kind in ("float32", "bfloat16"))
    found: dict[str, list[tuple[float, str]]] = {}
    for label, name, picture in pictures(options.folders, options.side):
        colours = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture[:, :, :3]
        image = torch.from_numpy(np.ascontiguousarray(colours)).permute(2, 0, 1)[None]
        found.setdefault(label, []).append((decibels(changed(image), exact(image)), name))
    for label, values in found.items():
        worst, name = min(values)
        average = mean(value for value, _ in values)
        print(f"{label:<10} {len(values):>4} pictures, mean {average:.1f} dB, worst {worst:.1f} ({name})")


if __name__ == "__main__":
    main()
