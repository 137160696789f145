"""What the default model does not restore, as a picture: `python -m bench.failures [--out docs/failures.jpg]`.

Five pictures of the held-out test, each as degraded, restored, and as it should be, with PSNR in dB; the middle 192
pixels, enlarged twice without smoothing. They are chosen by kind, and of `brick` the row that loses most: motion along
a long path, defocus of a large radius, small writing, a thing that moved, and light at night.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.degradations import framed
from swintormer.checkpoint.checkpoint import read_checkpoint
from swintormer.cli.models import DEFAULT, MODELS, Model
from swintormer.evaluation import heldout
from swintormer.evaluation.metrics import psnr
from swintormer.evaluation.scores import NETWORK, network_methods
from swintormer.images.picture import wrap

CASES = (
    ("astronaut.png", "camera shake 31"),
    ("coffee.png", "layers 12, 5, 0"),
    ("page.png", "disc 4"),
    ("brick.png", "moving thing 20"),
    ("rocket.jpg", "night lights, shake 15"),
)
SIDE, SCALE = 192, 2


def picture(model: Model) -> NDArray[np.uint8]:
    """A row for each case: degraded, restored, truth."""
    restore = network_methods(read_checkpoint(model.path()), precision="float32", scales=model.scales)[NETWORK]
    every = (*heldout.DEGRADATIONS, *heldout.CAMERA_DEGRADATIONS)
    rows = []
    for name, fault in CASES:
        number = next(n % 10 for n, degradation in enumerate(every) if degradation.name == fault)
        degradation = next(degradation for degradation in every if degradation.name == fault)
        degraded, truth = heldout.degrade(heldout.photograph(name), degradation, seed=number)
        restored = restore(degraded)
        labels = (
            f"{Path(name).stem}, {fault}: {psnr(degraded, truth):.2f} dB",
            f"restored: {psnr(restored, truth):.2f} dB",
            "truth",
        )
        tiles = (_shown(image) for image in (degraded, restored, truth))
        rows.append(np.concatenate([framed(*pair) for pair in zip(labels, tiles, strict=True)], 1))
    return np.concatenate(rows)


def _shown(image: NDArray[np.float32]) -> NDArray[np.float32]:
    middle = heldout.centre(image, SIDE)
    return np.broadcast_to(middle, (*middle.shape[:2], 3)).repeat(SCALE, 0).repeat(SCALE, 1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/failures.jpg"), help="picture to write")
    parser.add_argument("--model", choices=MODELS, default=DEFAULT)
    given = parser.parse_args()
    wrap(picture(MODELS[given.model])).jpegsave(str(given.out), Q=88)
    print(given.out)


if __name__ == "__main__":
    main()
