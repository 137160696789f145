"""What several resolutions do for wide blur: `python -m bench.wide_blur FOLDER [--limit 12]`.

FOLDER holds sharp photographs. Each is blurred with discs in linear light, with noise of 1 of 255 and rounding to 8
bits, and restored at one, two and three resolutions and by the automatic choice (`swintormer.inference.scales`). The
table has the mean gain in dB over the blurred picture, and of the automatic choice also the worst.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np

from swintormer.checkpoint.checkpoint import read_checkpoint
from swintormer.cli.models import MODELS
from swintormer.data.blurs import disc_kernel
from swintormer.evaluation import heldout
from swintormer.evaluation.metrics import psnr
from swintormer.evaluation.scores import photographs_in, pictures_below
from swintormer.inference.deblurrer import Deblurrer

RADII = (1.5, 3, 5, 8, 10, 12, 14)
SCALES: tuple[int | Literal["auto"], ...] = (1, 2, 3, "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", choices=MODELS, default="wide")
    parser.add_argument("--limit", type=int, help="only the first so many photographs")
    options = parser.parse_args()
    checkpoint = read_checkpoint(MODELS[options.model].path())
    deblurrers = {scales: Deblurrer(checkpoint, precision="float32", scales=scales) for scales in SCALES}
    paths = pictures_below(options.folder)[: options.limit]
    print("radius   " + "".join(f"{f'scales {scales}':>14}" for scales in SCALES) + "   auto, worst", flush=True)
    for radius in RADII:
        fault = heldout.Degradation(f"disc {radius}", lambda radius=radius: [disc_kernel(radius)], linear=True)  # type: ignore[misc]
        gains: dict[int | str, list[float]] = {scales: [] for scales in SCALES}
        for _, photograph in photographs_in(options.folder, paths):
            picture, truth = heldout.degrade(photograph, fault, 0, max(photograph.shape))
            before = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            for scales, deblurrer in deblurrers.items():
                after = deblurrer.restore_array(before)
                gains[scales].append(psnr(after / 255, truth) - psnr(before / 255, truth))
        worst = min(gains["auto"])
        row = "".join(f"{mean(gains[scales]):+14.2f}" for scales in SCALES)
        print(f"{radius:<9}{row}{worst:+14.2f}", flush=True)


if __name__ == "__main__":
    main()
