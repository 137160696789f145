"""How often a picture that needs nothing is left alone, and how often one is that should have been restored.

`python -m bench.leave_alone [--model strong] [--side 384] FOLDER`: FOLDER holds sharp photographs. Each is restored as
it is and in the twenty degradations of `swintormer evaluate`, rounded to 8 bits. For each threshold of the change
(`images.compare.change`) the table has the share of sharp photographs that are left alone, that of degraded ones, and
how much these would have gained. `cli/models.py` holds the threshold of each model. 24 photographs take fifteen minutes
on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import numpy as np

from swintormer.checkpoint.checkpoint import read_checkpoint
from swintormer.cli.models import DEFAULT, MODELS
from swintormer.evaluation import heldout
from swintormer.evaluation.metrics import psnr
from swintormer.evaluation.scores import photographs_in, pictures_below
from swintormer.images.compare import change
from swintormer.inference.deblurrer import Deblurrer

THRESHOLDS = (46, 47, 48, 49, 50, 51, 52)  # dB
WORTH = 0.1  # dB of gain that a picture should not lose by being left alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", choices=MODELS, default=DEFAULT)
    parser.add_argument("--side", type=int, default=heldout.SIDE, help="of the middle that is used, in pixels")
    options = parser.parse_args()
    model = MODELS[options.model]
    deblurrer = Deblurrer(read_checkpoint(model.path()), precision="float32", scales=model.scales)
    sharp: list[float] = []
    degraded: list[tuple[float, float]] = []  # change and gain
    for _, photograph in photographs_in(options.folder, pictures_below(options.folder)):
        for degradation in (heldout.SHARP, *heldout.DEGRADATIONS, *heldout.CAMERA_DEGRADATIONS):
            picture, truth = heldout.degrade(photograph, degradation, 0, options.side)
            before = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            after = deblurrer.restore_array(before)
            if degradation is heldout.SHARP:
                sharp.append(change(before, after))
            else:
                gain = psnr(after / 255, truth) - psnr(before / 255, truth)
                degraded.append((change(before, after), gain))
    print(f"{len(sharp)} sharp pictures, {len(degraded)} degraded ones")
    print(f"change   sharp left alone   degraded left alone   of these > {WORTH} dB lost   mean and most lost")
    for threshold in THRESHOLDS:
        alone = sum(value >= threshold for value in sharp)
        lost = [gain for value, gain in degraded if value >= threshold]
        worth = sum(gain > WORTH for gain in lost)
        how_much = f"{mean(lost):6.2f} {max(lost):6.2f} dB" if lost else ""
        print(f"{threshold} dB {alone:12d} {len(lost):21d} {worth:21d} {how_much:>30}")


if __name__ == "__main__":
    main()
