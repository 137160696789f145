"""Scores of pairs of photographs: of the published datasets, and of one's own folders.

The paper's protocol (arXiv 2401.05907) as its release runs it: tiles as large as the training crops, 256 pixels a side
and 220 apart in the released recipe, averaged uniformly where they overlap; PSNR, SSIM and MAE of the whole picture in
[0, 1] with all its bits, nothing cropped, and the mean over pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from swintormer.data.cache import Say, to_stderr
from swintormer.data.datasets import PairFiles
from swintormer.errors import SwintormerError
from swintormer.evaluation.scores import (
    INPUT,
    Array,
    Distance,
    Known,
    Network,
    Restore,
    Score,
    note_failure,
    pictures_below,
    read_float,
    score,
)
from swintormer.execution.tiling import Blend
from swintormer.images.files import some_names

PAPER_BLEND: Blend = "uniform"

# Which of DPDD's 76 test pictures, in the order of their names, were taken indoors; the other 39 outdoors. As in the
# evaluation of the released network.
DPDD_TEST = 76
DPDD_INDOOR = frozenset((*range(8, 14), 16, 32, *range(39, 57), *range(59, 68), 74, 75))

BLURRED_ENDINGS = ("blur", "blurred")
SHARP_ENDINGS = ("sharp", "truth")


def with_rooms(pairs: Sequence[PairFiles]) -> list[PairFiles]:
    """DPDD's test pictures with their groups, "indoor" or "outdoor", if all 76 are there and have none yet."""
    if len(pairs) != DPDD_TEST or any(pair.group for pair in pairs):
        return list(pairs)
    return [replace(pair, group="indoor" if number in DPDD_INDOOR else "outdoor") for number, pair in enumerate(pairs)]


def named_pairs(folder: Path, say: Say = to_stderr) -> list[PairFiles]:
    """Pairs that lie side by side in a folder or below it, as NAME_blur.png and NAME_sharp.png, in any format.

    Other pictures are left out. The group is the folder, relative to `folder`.

    Args:
        say: takes the names of those of the two that have no partner; they are left out as well.

    Raises:
        SwintormerError: no such folder, no pair in it, or two files for one picture of a pair.
    """
    files: dict[tuple[str, bool], Path] = {}
    for path in pictures_below(folder, say):
        name, _, ending = path.relative_to(folder).with_suffix("").as_posix().rpartition("_")
        if not name or ending not in (*BLURRED_ENDINGS, *SHARP_ENDINGS):
            continue
        key = name, ending in SHARP_ENDINGS
        if key in files:
            raise SwintormerError(f"{files[key]} and {path} are the same picture of one pair: keep one of them.")
        files[key] = path
    alone = [str(path) for (name, is_sharp), path in files.items() if (name, not is_sharp) not in files]
    if alone:
        say(f"Left out for want of a partner, such as NAME_sharp.png of NAME_blur.png: {some_names(alone)}.")
    pairs = [
        PairFiles(name, path, files[name, True], group=name.rpartition("/")[0])
        for (name, is_sharp), path in files.items()
        if not is_sharp and (name, True) in files
    ]
    if not pairs:
        raise SwintormerError(f"{folder} holds no pair named like NAME_blur.png and NAME_sharp.png.")
    return pairs


def pair_scores(
    methods: Mapping[str, Restore],
    pairs: Sequence[PairFiles],
    *,
    known: Known | None = None,
    skip_rows: int = 0,
    distance: Distance | None = None,
    failures: list[str] | None = None,
) -> Iterator[Score]:
    """Yield a score for every pair and method, and for the blurred picture itself; alpha is ignored.

    A network of six channels gets both dual-pixel views, others the blurred picture.

    Args:
        skip_rows: rows at the top that are left out of both pictures, such as a caption.
        distance: perceptual distance; None leaves it out.
        failures: takes a sentence for each pair that cannot be measured, which is left out.

    Raises:
        SwintormerError: a picture cannot be read, or two that belong together differ in size or channels; a network of
            six channels and no views. Only without `failures`.
    """
    methods = {INPUT: lambda image: image, **methods}
    for pair in pairs:
        keys = {method: (pair.name, "", method) for method in methods}
        done = {key: known[key] for key in keys.values() if known and key in known}
        if len(done) == len(keys):
            yield from done.values()
            continue
        try:
            truth = _read(pair.sharp, skip_rows)
            image = _read_like(pair.blurred, pair.sharp, truth, skip_rows)
            views = _views(pair, truth, skip_rows) if any(map(takes_two_views, methods.values())) else (image,)
        except SwintormerError as error:
            note_failure(error, failures)
            continue
        for method, restore in methods.items():
            key = keys[method]
            if key in done:
                yield done[key]
            else:
                shown = views if takes_two_views(restore) else (image,)
                yield score(key, restore(*shown), truth, distance, pair.group)


def takes_two_views(restore: Restore) -> bool:
    """Whether a method is a network of six channels, for dual-pixel pairs."""
    return isinstance(restore, Network) and restore.deblur.net.config.two_views


def _views(pair: PairFiles, truth: Array, skip_rows: int) -> tuple[Array, Array]:
    if pair.left is None or pair.right is None:
        raise SwintormerError(f"{pair.name} has no dual-pixel views, which these weights need: use weights for one.")
    left, right = (_read_like(path, pair.sharp, truth, skip_rows) for path in (pair.left, pair.right))
    return left, right


def _read(path: Path, skip_rows: int) -> Array:
    picture = read_float(path)
    if skip_rows >= picture.shape[0]:
        raise SwintormerError(f"{path} has {picture.shape[0]} rows: --skip-rows {skip_rows} leaves none of them.")
    return np.ascontiguousarray(picture[skip_rows:])


def _read_like(path: Path, truth_path: Path, truth: Array, skip_rows: int) -> Array:
    picture = _read(path, skip_rows)
    if picture.shape != truth.shape:
        raise SwintormerError(
            f"{path} and {truth_path} must have the same size and channels, found {_size(picture)} and {_size(truth)}."
        )
    return picture


def _size(picture: Array) -> str:
    height, width, channels = picture.shape
    return f"{width}x{height} {'gray' if channels == 1 else 'RGB'}"
