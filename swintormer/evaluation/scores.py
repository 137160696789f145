"""Scores of restored pictures: how a network is called, and the photographs with fixed degradations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swintormer.checkpoint.checkpoint import Checkpoint
from swintormer.data.cache import Say, to_stderr
from swintormer.data.datasets import find_pictures
from swintormer.errors import SwintormerError
from swintormer.evaluation import heldout
from swintormer.evaluation.metrics import SSIM_WINDOW, mae, psnr, ssim
from swintormer.images.files import is_folder
from swintormer.images.formats import SUFFIXES
from swintormer.images.reading import read_image
from swintormer.inference.deblurrer import Deblurrer, Progress

Array: TypeAlias = NDArray[np.float32]
Restore: TypeAlias = Callable[..., Array]
"""(H, W, C) in [0, 1] -> the same, restored. A `Network` also takes the right view of a dual-pixel pair."""
Distance: TypeAlias = Callable[[Array, Array], float | None]
"""Perceptual distance of a restored picture from the truth, (H, W, C) in [0, 1]; None for pictures too small for it."""

INPUT, NETWORK, BEST_CLASSICAL = "input", "network", "best classical"
NO_PRIOR = "network, no prior"  # the same as a z_0 of zeros: the fusion adds nothing


@dataclass(frozen=True)
class Score:
    """Scores of one picture with one degradation, restored by one method.

    PSNR in dB (inf if equal), structural similarity, mean absolute error, perceptual distance (None if not measured).
    `degradation` is empty for pairs of pictures; `group` is the part of a dataset, such as "indoor", or empty.
    """

    picture: str
    degradation: str
    method: str
    psnr: float
    ssim: float
    mae: float
    lpips: float | None = None
    group: str = ""

    @property
    def key(self) -> Key:
        return self.picture, self.degradation, self.method


Key: TypeAlias = tuple[str, str, str]
Known: TypeAlias = Mapping[Key, Score]
"""Scores of an earlier run by picture, degradation and method: they are not computed again."""


class Network:
    """A network as a method: floats in [0, 1] go through it as if they were files.

    Args:
        levels: 255 for 8-bit files; 65535 for 16-bit ones, where rounding is far below what the scores show.
        progress: called as in `Deblurrer.restore_array`; what it raises ends the run.
    """

    def __init__(self, deblur: Deblurrer, levels: int = 255, progress: Progress | None = None):
        self.deblur, self.levels, self.progress = deblur, levels, progress
        self.dtype = np.uint8 if levels == 255 else np.uint16

    def __call__(self, image: Array, right: Array | None = None) -> Array:
        """Restore (H, W, C) in [0, 1]: for networks of six channels the left view, with the right one."""
        left, other = (None if view is None else np.rint(view * self.levels).astype(self.dtype)
                       for view in (image, right))  # fmt: skip
        assert left is not None
        return (self.deblur.restore_array(left, other, self.progress) / self.levels).astype(np.float32)


def network_methods(
    checkpoint: Checkpoint, levels: int = 255, progress: Progress | None = None, **settings: Any
) -> dict[str, Restore]:
    """The network; with and without the prior if its weights contain one, which shows the gain from z_0.

    Args:
        settings: of `Deblurrer`: tile, stride, blend, device.
    """
    methods: dict[str, Restore] = {NETWORK: Network(Deblurrer(checkpoint, **settings), levels, progress)}
    if checkpoint.prior is not None:
        methods[NO_PRIOR] = Network(Deblurrer(checkpoint, prior=False, **settings), levels, progress)
    return methods


def heldout_photographs(names: Sequence[str] = heldout.PHOTOGRAPHS) -> Iterator[tuple[str, Array]]:
    """(name, picture) of the photographs that ship with scikit-image."""
    for name in names:
        yield Path(name).stem, heldout.photograph(name)


def photographs_in(
    folder: Path, paths: Sequence[Path], failures: list[str] | None = None
) -> Iterator[tuple[str, Array]]:
    """(path relative to the folder, picture) of each, floats in [0, 1] without alpha.

    Args:
        failures: takes a sentence for each picture that cannot be read, which is left out.

    Raises:
        SwintormerError: a picture cannot be read, and there are no `failures`.
    """
    for path in paths:
        try:
            picture = read_float(path)
        except SwintormerError as error:
            note_failure(error, failures)
            continue
        yield path.relative_to(folder).as_posix(), picture


def note_failure(error: SwintormerError, failures: list[str] | None) -> None:
    """Add the sentence to those, once; raise the error if there are none to add it to."""
    if failures is None:
        raise error
    if str(error) not in failures:
        failures.append(str(error))


def pictures_below(folder: Path, say: Say = to_stderr) -> list[Path]:
    """As `datasets.find_pictures`. Raises SwintormerError also if there is no folder or no picture."""
    if not is_folder(folder):
        raise SwintormerError(f"There is no folder {folder}.")
    found = find_pictures(folder, say)
    if not found:
        raise SwintormerError(f"The folder {folder} holds no picture ({', '.join(SUFFIXES)}).")
    return found


def read_float(path: Path) -> Array:
    """A picture as (H, W, C) float32 in [0, 1], without alpha.

    Raises:
        SwintormerError: it cannot be read, or is too small for SSIM.
    """
    pixels = read_image(path).pixels
    if min(pixels.shape[:2]) < SSIM_WINDOW:
        height, width = pixels.shape[:2]
        raise SwintormerError(
            f"{path} is {width}x{height}: SSIM needs sides of at least {SSIM_WINDOW} pixels, leave it out."
        )
    return (pixels / np.float32(np.iinfo(pixels.dtype).max)).astype(np.float32)


def degraded_scores(
    methods: Mapping[str, Restore],
    photographs: Iterator[tuple[str, Array]],
    degradations: Sequence[heldout.Degradation | heldout.CameraDegradation] = heldout.DEGRADATIONS,
    side: int = heldout.SIDE,
    known: Known | None = None,
) -> Iterator[Score]:
    """Yield a score for every photograph, degradation and method, and for the input itself.

    Args:
        photographs: name and picture of each, (H, W, C) floats in [0, 1].
        side: at most, of the middle that is degraded and measured.
        known: scores that are not computed again.
    """
    methods = {INPUT: lambda image: image, **methods}
    for name, image in photographs:
        for number, degradation in enumerate(degradations):
            keys = {method: (name, degradation.name, method) for method in methods}
            done = {key: known[key] for key in keys.values() if known and key in known}
            if len(done) < len(keys):
                degraded, truth = heldout.degrade(image, degradation, seed=number, side=side)
            for method, key in keys.items():
                yield done[key] if key in done else score(key, methods[method](degraded), truth)


def score(key: Key, restored: Array, truth: Array, distance: Distance | None = None, group: str = "") -> Score:
    """The score of a restored picture, (H, W, C) in [0, 1]; `key` is picture, degradation and method.

    It has the digits that a file of scores keeps, so that a continued measurement gives the tables of one in one piece.
    """
    values = round(psnr(restored, truth), 4), round(ssim(restored, truth), 5), round(mae(restored, truth), 6)
    far = None if distance is None else distance(restored, truth)
    return Score(*key, *values, None if far is None else round(far, 5), group)


def sharp_scores(
    restore: Restore,
    photographs: Iterator[tuple[str, Array]],
    side: int | None = heldout.SIDE,
    known: Known | None = None,
) -> Iterator[Score]:
    """Yield scores of `restore` on sharp photographs: how much it alters what needs no restoring.

    Args:
        side: the middle that is restored; None for whole photographs.
    """
    for name, image in photographs:
        key = (name, heldout.SHARP.name, NETWORK)
        if known and key in known:
            yield known[key]
        else:
            truth = image if side is None else heldout.centre(image, side)
            yield score(key, restore(truth), truth)
