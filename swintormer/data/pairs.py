"""Crops of pairs of photographs: real blur and its truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swintormer.data.cache import Picture, Say, decode, to_stderr
from swintormer.data.datasets import PairFiles
from swintormer.errors import SwintormerError
from swintormer.images.files import some_names
from swintormer.images.picture import Samples


@dataclass(frozen=True)
class DecodedPair:
    """A pair in the cache.

    Attributes:
        files: where it comes from.
        inputs: (blurred,), or the dual-pixel views (left, right).
        sharp: of the same height and width.
    """

    files: PairFiles
    inputs: tuple[Picture, ...]
    sharp: Picture


def decode_pairs(
    files: Sequence[PairFiles], views: bool = False, cache: Path | None = None, say: Say = to_stderr
) -> list[DecodedPair]:
    """Pairs whose pictures are in the cache (`cache.decode`); those that cannot be read are named and left out.

    Args:
        views: take the dual-pixel views in place of the blurred picture.

    Raises:
        SwintormerError: pictures of a pair differ in size; there are no views; no pair can be read.
    """
    wanted = [_files(pair, views) for pair in files]
    found = {picture.path: picture for picture in decode([path for paths in wanted for path in paths], cache, say)}
    pairs = []
    for own, paths in zip(files, wanted, strict=True):
        if not all(path in found for path in paths):  # named by `decode`
            continue
        *inputs, sharp = (found[path] for path in paths)
        for picture in inputs:
            if picture.shape[:2] != sharp.shape[:2]:
                sizes = ["{1}x{0}".format(*p.shape) for p in (picture, sharp)]
                raise SwintormerError(
                    f"{picture.path} is {sizes[0]} and its sharp partner {sharp.path} is {sizes[1]}: "
                    "a pair shows the same pixels, blurred and sharp."
                )
        pairs.append(DecodedPair(own, tuple(inputs), sharp))
    if not pairs:
        raise SwintormerError(f"None of the {len(files)} pairs can be read, the first is {files[0].blurred}.")
    return pairs


def _files(pair: PairFiles, views: bool) -> tuple[Path, ...]:
    if not views:
        return pair.blurred, pair.sharp
    if pair.left is None or pair.right is None:
        raise SwintormerError(f"{pair.blurred} has no dual-pixel views: set views to false, or leave these pairs out.")
    return pair.left, pair.right, pair.sharp


class PairCrops:
    """`crops[i]` is (blurred, sharp): float32 (3 or, with dual-pixel views, 6, crop, crop) and (3, crop, crop).

    The same place of both, mirrored and turned alike. Values are the stored ones over the largest, so 16 bits stay. A
    mirror image of a scene, seen by a dual-pixel sensor, has its left view where the right one was: mirroring from left
    to right swaps the views. They differ along rows alone, so such pairs are not turned by quarters.

    Crop i is the same in every process and order of access.

    Args:
        pairs: those smaller than `crop` are left out, which `say` is told.
        key: with the index the only source of chance.

    Raises:
        SwintormerError: no pair is large enough.
    """

    def __init__(self, pairs: Sequence[DecodedPair], key: tuple[int, ...], crop: int, say: Say = to_stderr):
        self.pairs = [pair for pair in pairs if min(pair.sharp.shape[:2]) >= crop]
        self.key, self.crop = key, crop
        small = len(pairs) - len(self.pairs)
        if not self.pairs:
            raise SwintormerError(f"None of the {small} pairs has {crop} pixels a side: choose a smaller crop.")
        if small:
            names = some_names([str(pair.files.blurred) for pair in pairs if min(pair.sharp.shape[:2]) < crop])
            say(f"{small} of {len(pairs)} pairs have less than {crop} pixels a side and are left out: {names}.")

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((*self.key, index))
        pair = self.pairs[rng.integers(len(self.pairs))]
        height, width = pair.sharp.shape[:2]
        top, left = int(rng.integers(height - self.crop + 1)), int(rng.integers(width - self.crop + 1))
        mirror, turns = bool(rng.integers(2)), int(rng.integers(4))
        inputs = pair.inputs
        if len(inputs) == 2:
            turns -= turns % 2
            swapped = mirror != (turns == 2)  # half a turn mirrors both ways
            inputs = inputs[::-1] if swapped else inputs
        images = []
        for picture in (*inputs, pair.sharp):
            image = _values(picture.map()[top : top + self.crop, left : left + self.crop])
            images.append(torch.rot90(image.flip(-1) if mirror else image, turns, (-2, -1)))
        return torch.cat(images[:-1]), images[-1].contiguous()


def _values(samples: Samples) -> Tensor:
    """(H, W, 1 or 3) samples as (3, H, W) float32 in [0, 1]."""
    scale = np.float32(np.iinfo(samples.dtype).max)
    return torch.from_numpy(np.asarray(samples, dtype=np.float32) / scale).permute(2, 0, 1).expand(3, -1, -1)
