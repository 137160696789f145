"""What a model's guard is worth and costs: `python -m bench.guard FOLDER [--model strong] [--limit 40] [--limits 4 8]`.

FOLDER holds sharp photographs. The middle of each, in the twenty degradations of `swintormer evaluate` and as it is, is
restored by the network alone, by the guard alone, and by the network with its guard (`Deblurrer(guard=)`). The table
has the mean and the worst gain in dB over the ten degradations and over the ten of cameras, and the mean and the least
PSNR of the sharp pictures against themselves. The last line tells how many of the network's pixels the guard sees.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from torch import nn

from swintormer.checkpoint.checkpoint import read_checkpoint
from swintormer.cli.models import DEFAULT, MODELS
from swintormer.evaluation import heldout
from swintormer.evaluation.scores import (
    NETWORK,
    Network,
    degraded_scores,
    photographs_in,
    pictures_below,
    sharp_scores,
)
from swintormer.evaluation.tables import gains
from swintormer.inference import choice
from swintormer.inference.deblurrer import Deblurrer

SETS = {"ten": heldout.DEGRADATIONS, "cameras": heldout.CAMERA_DEGRADATIONS}


class Pixels:
    """Counts the pixels that a network sees."""

    def __init__(self, net: nn.Module):
        self.count = 0
        net.register_forward_pre_hook(self._add)

    def _add(self, _: nn.Module, arguments: tuple[object, ...]) -> None:
        tiles = arguments[0]
        self.count += tiles.shape[0] * tiles.shape[2] * tiles.shape[3]  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", choices=[model.name for model in MODELS.values() if model.guard], default=DEFAULT)
    parser.add_argument("--side", type=int, default=256, help="of the middle, in pixels")
    parser.add_argument("--limit", type=int, help="only the first so many photographs")
    parser.add_argument("--limits", type=float, nargs=2, default=choice.FURTHER, help="where the guard's share begins")
    options = parser.parse_args()
    choice.FURTHER = tuple(options.limits)
    model = MODELS[options.model]
    # Read once for each Deblurrer, so that the pixels of the guarded one are counted apart.
    guarded = Deblurrer(read_checkpoint(model.path()), precision="float32", **model.settings())
    assert guarded.guard is not None
    ways = {
        "network": Deblurrer(read_checkpoint(model.path()), precision="float32"),
        "guard": Deblurrer(read_checkpoint(model.guard_path()), precision="float32"),
        "guarded": guarded,
    }
    network, guard = Pixels(guarded.net), Pixels(guarded.guard)
    found = list(photographs_in(options.folder, pictures_below(options.folder)[: options.limit]))
    print(f"{'':10}" + "".join(f"{name:>22}" for name in (*SETS, "sharp")))
    for way, deblurrer in ways.items():
        methods = {NETWORK: Network(deblurrer)}
        values = [
            list(gains(degraded_scores(methods, iter(found), faults, options.side)).values())
            for faults in SETS.values()
        ]
        values.append([score.psnr for score in sharp_scores(methods[NETWORK], iter(found), options.side)])
        print(f"{way:10}" + "".join(f"{mean(numbers):+13.2f} {min(numbers):+8.2f}" for numbers in values))
    print(f"The guard saw {guard.count / network.count:.0%} of the pixels that the network saw.")


if __name__ == "__main__":
    main()
