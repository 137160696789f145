"""Training pairs from a mixture of sources, each pair a function of (seed, stream, index) alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swintormer.data.cache import Say, to_stderr
from swintormer.data.config import DataConfig, PairsConfig
from swintormer.data.datasets import PairFiles, read_pairs
from swintormer.data.degrade import MARGIN, degrade
from swintormer.data.pairs import PairCrops, decode_pairs
from swintormer.data.photos import PhotoWindows, decode_folders
from swintormer.data.synthetic import MARGIN as SIMPLE_MARGIN
from swintormer.data.synthetic import SceneWindows, SyntheticPairs, simple_pair
from swintormer.data.walls import WallWindows

Pair = tuple[Tensor, Tensor]

BLOCK = 1000  # pairs in which every source has exactly its share
HELD_OUT = 16  # one picture in so many is kept for validation
_FEW = 8  # pictures or groups; below, validation takes the training pictures

# What follows seed and stream in the keys of the random generators. 0 and 1 are those of SyntheticPairs.
_PHOTOS, _PAIRS, _DEGRADATION, _ORDER, _SCENES, _WALLS = range(2, 8)
_OF_SCENES, _OF_PHOTOS, _OF_WALLS = range(3)  # after _DEGRADATION


class Source(Protocol):
    """Endless pairs of blurred and sharp, float32 in [0, 1] on the CPU: (C, crop, crop) and (3, crop, crop)."""

    def __getitem__(self, index: int) -> Pair: ...

    def batch(self, start: int, size: int) -> Pair:
        """Pairs start ... start + size - 1, stacked; any start >= 0."""

    def describe(self) -> str:
        """One line for the model card: what the data was."""


def make_source(
    config: DataConfig,
    seed: int,
    crop: int,
    stream: int = 0,
    scene_side: int | None = None,
    say: Say = to_stderr,
    validation_crop: int | None = None,
) -> Source:
    """The source of a configuration. It may be handed to other processes (pickled), which then decode nothing.

    Photographs and pairs that are not in the cache yet are decoded here. One in HELD_OUT of those that are large enough
    is kept for validation, where there are eight or more; of datasets with scenes whole scenes.

    Args:
        crop: side of a pair in pixels.
        stream: 0 for training, 1 for validation.
        scene_side: of generated scenes; None for 512 or what the crop needs.
        say: takes lines of progress, the names of pictures that are left out, and of sources too small to divide.
        validation_crop: `crop` of the validation, where it is another: what is kept for it must not depend on `crop`.

    Raises:
        SwintormerError: a folder, a layout or a picture is not what the configuration says.
    """
    if config.degradation == "simple" and not (config.walls or config.photos or config.pairs):
        return SyntheticPairs(seed, crop, scene_side, stream)
    key = (seed, stream)
    kept = crop if validation_crop is None else validation_crop
    parts: list[_Part] = []
    if config.scenes_share:
        parts.append(_scenes(config, key, crop, scene_side))
    if config.photos:
        parts.append(_photos(config, key, crop, kept, say))
    if config.walls:
        parts.append(_walls(config, key, crop))
    for number, pairs in enumerate(config.pairs):
        parts.append(_pairs(config, pairs, (*key, _PAIRS, number), crop, kept, say))
    return Mixture(parts, key)


class _Pairs(Protocol):
    def pairs(self, indices: Sequence[int]) -> Pair:
        """The pairs of these indices, stacked."""


@dataclass(frozen=True)
class _Part:
    share: float
    source: _Pairs
    text: str


class Mixture:
    """Parts by their shares: in every BLOCK of indices each part has exactly its share, in random order.

    Pair i of the mixture is the next of its part, so every part runs through its own indices without gaps, and no index
    is used twice.
    """

    def __init__(self, parts: Sequence[_Part], key: tuple[int, ...]):
        self.parts, self.key = tuple(parts), key
        self.counts = allot([part.share for part in self.parts], BLOCK)
        self._block: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def locate(self, index: int) -> tuple[int, int]:
        """Part of a pair, and its index there."""
        block, at = divmod(index, BLOCK)
        if self._block is None or self._block[0] != block:
            order = np.repeat(np.arange(len(self.parts)), self.counts)
            np.random.default_rng((*self.key, _ORDER, block)).shuffle(order)
            ranks = np.zeros(BLOCK, np.int64)
            for part in range(len(self.parts)):
                ranks[order == part] = np.arange(self.counts[part])
            self._block = block, order, ranks
        _, order, ranks = self._block
        part = int(order[at])
        return part, block * self.counts[part] + int(ranks[at])

    def __getitem__(self, index: int) -> Pair:
        blurred, sharp = self.batch(index, 1)
        return blurred[0], sharp[0]

    def batch(self, start: int, size: int) -> Pair:
        places = [self.locate(index) for index in range(start, start + size)]
        images: list[Pair | None] = [None] * size
        for number, part in enumerate(self.parts):
            mine = [at for at, (owner, _) in enumerate(places) if owner == number]
            if mine:
                made = part.source.pairs([places[at][1] for at in mine])
                for at, pair in zip(mine, zip(*made, strict=True), strict=True):
                    images[at] = pair
        blurred, sharp = zip(*(pair for pair in images if pair is not None), strict=True)
        return torch.stack(blurred), torch.stack(sharp)

    def describe(self) -> str:
        shares = (f"{count / BLOCK:.1%}".replace(".0%", "%") for count in self.counts)
        return "; ".join(f"{share} {part.text}" for share, part in zip(shares, self.parts, strict=True))


def allot(shares: Sequence[float], places: int) -> list[int]:
    """Whole numbers of sum `places` in proportion to the shares (largest remainder); at least 1 each."""
    exact = np.asarray(shares, dtype=np.float64) / sum(shares) * places
    counts = np.maximum(np.floor(exact), 1).astype(int)
    for part in np.argsort(counts - exact, kind="stable")[: max(0, places - int(counts.sum()))]:
        counts[part] += 1
    counts[np.argmax(counts)] += places - counts.sum()  # what tiny shares took
    return counts.tolist()


class _Windows(Protocol):
    def __getitem__(self, index: int) -> Tensor: ...


class _Camera:
    """Windows with the "camera" degradation."""

    def __init__(self, windows: _Windows, key: tuple[int, ...], config: DataConfig):
        self.windows, self.key, self.recipe, self.views = windows, key, config.recipe, config.views

    def pairs(self, indices: Sequence[int]) -> Pair:
        windows = torch.stack([self.windows[index] for index in indices])
        seeds = [(*self.key, index) for index in indices]
        blurred, sharp = degrade(windows, seeds, self.recipe, self.views)
        return blurred, sharp


class _Simple:
    """Windows with the "simple" degradation."""

    def __init__(self, windows: _Windows, key: tuple[int, ...]):
        self.windows, self.key = windows, key

    def __getitem__(self, index: int) -> Pair:
        rng = np.random.default_rng((*self.key, index))
        return simple_pair(rng, np.ascontiguousarray(self.windows[index].permute(1, 2, 0).numpy()))


class _OneByOne:
    """A source that makes one pair at a time."""

    def __init__(self, source: SyntheticPairs | PairCrops | _Simple):
        self.source = source

    def pairs(self, indices: Sequence[int]) -> Pair:
        blurred, sharp = zip(*(self.source[index] for index in indices), strict=True)
        return torch.stack(blurred), torch.stack(sharp)


def _margin(config: DataConfig) -> int:
    """Pixels that a window is larger than the crop."""
    return SIMPLE_MARGIN if config.degradation == "simple" else 2 * MARGIN


def _degraded(windows: _Windows, key: tuple[int, ...], config: DataConfig) -> _Pairs:
    """Windows with the degradation of the configuration."""
    return _OneByOne(_Simple(windows, key)) if config.degradation == "simple" else _Camera(windows, key, config)


def _scenes(config: DataConfig, key: tuple[int, ...], crop: int, scene_side: int | None) -> _Part:
    if config.degradation == "simple":
        source: _Pairs = _OneByOne(SyntheticPairs(key[0], crop, scene_side, key[1]))
    else:
        windows = SceneWindows((*key, _SCENES), crop + 2 * MARGIN, scene_side)
        source = _Camera(windows, (*key, _DEGRADATION, _OF_SCENES), config)
    return _Part(config.scenes_share, source, f"generated scenes ({config.degradation} degradation)")


def _walls(config: DataConfig, key: tuple[int, ...], crop: int) -> _Part:
    windows = WallWindows((*key, _WALLS), crop + _margin(config))
    source = _degraded(windows, (*key, _DEGRADATION, _OF_WALLS), config)
    return _Part(config.walls, source, f"generated walls ({config.degradation} degradation)")


def _photos(config: DataConfig, key: tuple[int, ...], crop: int, validation_crop: int, say: Say) -> _Part:
    margin = _margin(config)
    pictures = decode_folders(config.photos, config.cache, say)
    large = [min(picture.shape[:2]) >= validation_crop + margin for picture in pictures]
    names = ", ".join(folder.name for folder in config.photos)
    chosen = held_out(
        pictures, [picture.path.name for picture in pictures], key[1], large, f"Photographs of {names}", say
    )
    windows = PhotoWindows(chosen, (*key, _PHOTOS), crop + margin, say, config.soft)
    source = _degraded(windows, (*key, _DEGRADATION, _OF_PHOTOS), config)
    return _Part(
        config.photos_share, source, f"{len(chosen)} photographs of {names} ({config.degradation} degradation)"
    )


def _pairs(
    config: DataConfig, pairs: PairsConfig, key: tuple[int, ...], crop: int, validation_crop: int, say: Say
) -> _Part:
    found = read_pairs(pairs.layout, pairs.root, pairs.split)
    decoded = decode_pairs(found, config.views, config.cache, say)
    large = [min(pair.sharp.shape[:2]) >= validation_crop for pair in decoded]
    what = f"Scenes or pairs of {pairs.layout} ({pairs.root})"
    chosen = held_out(decoded, _scene_names([pair.files for pair in decoded]), key[1], large, what, say)
    text = f"{len(chosen)} pairs of {pairs.layout} ({pairs.root.name}, {pairs.split})"
    return _Part(pairs.share, _OneByOne(PairCrops(chosen, key, crop, say)), text)


def _scene_names(files: Sequence[PairFiles]) -> list[str]:
    """What must not be divided: the scene where the dataset has enough of them, else the truth of one or two pairs."""
    scenes = [pair.scene or pair.name for pair in files]
    if len(set(scenes)) >= _FEW:
        return scenes
    return [f"{pair.scene}/{pair.sharp.stem}" if pair.scene else pair.name for pair in files]


Item = TypeVar("Item")


def held_out(
    items: Sequence[Item],
    names: Sequence[str],
    stream: int,
    large: Sequence[bool] | None = None,
    what: str = "",
    say: Say = to_stderr,
) -> list[Item]:
    """The items of a stream: one name in HELD_OUT is for validation (1), the others for training (0).

    The names' checksums choose, so that it does not depend on the machine. With fewer than _FEW names both streams get
    all, which `say` is told.

    Args:
        large: whether an item can be validated on; names that have one which is too small are all for training.
        what: the items, for `say`.
    """
    small = {name for name, fits in zip(names, large, strict=True) if not fits} if large is not None else set()
    able = set(names) - small
    ordered = sorted(able, key=lambda name: (zlib.crc32(name.encode("utf-8", "surrogateescape")), name))
    if len(ordered) < _FEW:
        if able:
            few = f"{len(ordered)} are too few to keep some for validation, which takes {_FEW}"
            say(f"{what}: {few}; it sees pictures that are trained on.")
        return list(items)
    kept = set(ordered[: max(1, len(ordered) // HELD_OUT)])
    return [item for item, name in zip(items, names, strict=True) if (name in kept) == (stream != 0)]
