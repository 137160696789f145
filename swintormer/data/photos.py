"""Windows of sharp photographs: what training pairs are made from.

Any folder of pictures serves. They are decoded once (`cache`); a window is then a few reads of mapped memory, a
resampling and a turn. Photographs differ from generated scenes in what matters: a small network that saw 12,000 windows
of photographs restored as much as one four times its size that saw 40,000 of dead leaves.

What a window may look like is drawn so that the network meets what people have:

- Resolution: as stored, or reduced up to MAX_REDUCTION times (anti-aliased, in linear light). Reduced pictures are
  sharp to the pixel, which the files of cameras are not.
- Content: of CANDIDATES places the one with the steepest gradients, but for one window in four the first, so that sky,
  walls and fur are met as well.
- Soft and faint truths: without them a network takes a wall that is soft by nature for a blurred one and loses 9 dB.
  Soft is a picture by a lens (Gaussian), because it was enlarged, or because its surface has little fine detail
  (a steeper spectrum). A network trained long with Gaussians alone (`strong` before the walls: MODEL_CARD.md) sharpens
  the other two. No kind helps for a wall whose wide soft bands look like thin lines out of focus; generated walls do
  (walls.py). Their share is `soft`; 0.35 of Gaussians made a network hesitate (recipe.py).
- Gray ones: some of a folder in colour are made gray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from swintormer.data.cache import Picture, Say, decode, to_stderr
from swintormer.data.datasets import find_pictures
from swintormer.data.degrade.light import light_to_srgb, srgb_to_light
from swintormer.errors import SwintormerError
from swintormer.images.files import is_folder, some_names
from swintormer.images.formats import SUFFIXES
from swintormer.images.picture import Samples

MAX_REDUCTION = 3.0
CANDIDATES = 4
AS_STORED = 0.3  # share of windows that are not reduced
ANYWHERE = 0.25  # share of windows that take the first place
KINDS = {"gaussian": 0.4, "enlarged": 0.25, "steep": 0.35}  # of soft truths
SOFTNESS = (0.5, 1.6)  # sigmas of the Gaussian, pixels
ENLARGED = (1.2, 2.2)  # factors
STEEP, CORNER = (0.3, 1.2), 0.03  # exponents of frequency, and cycles a pixel from where on amplitudes fall
FAINT, CONTRAST = 0.25, (0.15, 0.7)  # share, and factors about the mean
GRAY = 0.06

_LUMA = (0.2126, 0.7152, 0.0722)  # of linear sRGB, Rec. 709


def decode_folders(folders: Sequence[str | Path], cache: Path | None = None, say: Say = to_stderr) -> list[Picture]:
    """All pictures below the folders, decoded (`cache.decode`), in a fixed order.

    Raises:
        SwintormerError: a folder is missing or holds no picture that can be read; or as `cache.decode`.
    """
    pictures = []
    for folder in map(Path, folders):
        if not is_folder(folder):
            raise SwintormerError(f"There is no folder {folder}: give a folder of sharp photographs.")
        paths = find_pictures(folder, say)
        if not paths:
            raise SwintormerError(f"There is no picture below {folder}: looked for names in {', '.join(SUFFIXES)}.")
        found = decode(paths, cache, say)
        if not found:
            raise SwintormerError(f"None of the {len(paths)} pictures below {folder} can be read.")
        pictures += found
    return pictures


class PhotoWindows:
    """`windows[i]` is a window (3, side, side), float32 in [0, 1], as a file stores them; any i >= 0.

    Window i is the same in every process and order of access.

    Args:
        pictures: those with a side below `side` are left out, which `say` is told.
        key: with the index the only source of chance.
        soft: share of the windows that are made soft.

    Raises:
        SwintormerError: no picture is large enough.
    """

    def __init__(
        self, pictures: Sequence[Picture], key: tuple[int, ...], side: int, say: Say = to_stderr, soft: float = 0.2
    ):
        self.pictures = [picture for picture in pictures if min(picture.shape[:2]) >= side]
        self.key, self.side, self.soft = key, side, soft
        small = len(pictures) - len(self.pictures)
        if not self.pictures:
            raise SwintormerError(
                f"None of the {small} photographs has {side} pixels a side, which a crop and its margins take: "
                "choose a smaller crop or larger photographs."
            )
        if small:
            names = some_names([str(picture.path) for picture in pictures if min(picture.shape[:2]) < side])
            say(
                f"{small} of {len(pictures)} photographs have less than {side} pixels a side and are left out: {names}."
            )

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((*self.key, index))
        picture = self.pictures[rng.integers(len(self.pictures))]
        reduction = _random_reduction(rng, min(picture.shape[:2]) / self.side)
        reach = math.floor(self.side * reduction)
        samples = picture.map()
        top, left = _choose(rng, samples, reach, max(1, round(reduction)))
        light = to_light(samples[top : top + reach, left : left + reach])
        mode = "bicubic" if rng.random() < 0.5 else "bilinear"  # two looks of a reduced picture
        if reach > self.side:
            light = F.interpolate(light[None], (self.side, self.side), mode=mode, antialias=True)[0]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        light = torch.rot90(light.flip(-1) if mirror else light, turns, (-2, -1))
        return _look(rng, light, self.soft)


def _random_reduction(rng: np.random.Generator, largest: float) -> float:
    """1, or log-uniform up to MAX_REDUCTION; at most `largest`."""
    as_stored, size = rng.random() < AS_STORED, rng.random()
    return 1.0 if as_stored else min(MAX_REDUCTION**size, largest)


def _choose(rng: np.random.Generator, samples: Samples, reach: int, step: int) -> tuple[int, int]:
    """Top and left of the window."""
    height, width = samples.shape[:2]
    places = [(int(rng.integers(height - reach + 1)), int(rng.integers(width - reach + 1))) for _ in range(CANDIDATES)]
    if rng.random() < ANYWHERE:
        return places[0]
    return max(places, key=lambda place: _steepness(samples, place, reach, step))


def _steepness(samples: Samples, place: tuple[int, int], reach: int, step: int) -> float:
    """Mean of the squared differences of neighbours, of every `step`-th sample of green or gray."""
    top, left = place
    channel = 1 if samples.shape[2] == 3 else 0
    plane = samples[top : top + reach : step, left : left + reach : step, channel].astype(np.float32)
    return float(np.square(np.diff(plane, axis=0)).mean() + np.square(np.diff(plane, axis=1)).mean())


def _look(rng: np.random.Generator, light: Tensor, soft_share: float) -> Tensor:
    """(3, H, W) of linear light as it is, softer, fainter or without colour; returns stored values."""
    soft = rng.random() < soft_share
    faint, contrast = rng.random() < FAINT, rng.uniform(*CONTRAST)
    if rng.random() < GRAY:
        light = (light * torch.tensor(_LUMA)[:, None, None]).sum(0, keepdim=True).expand(3, -1, -1)
    if soft:
        light = _softened(rng, light)
    stored = light_to_srgb(light.clamp(0, 1))
    if faint:
        mean = stored.mean()
        stored = mean + contrast * (stored - mean)
    return stored.contiguous()


def _softened(rng: np.random.Generator, light: Tensor) -> Tensor:
    """(C, S, S) as soft as some sharp photographs are, in one of KINDS."""
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    if kind == "gaussian":
        return _gaussian(light, rng.uniform(*SOFTNESS))
    side = light.shape[-1]
    if kind == "enlarged":
        part = max(1, round(side / rng.uniform(*ENLARGED)))
        return F.interpolate(light[None, :, :part, :part], (side, side), mode="bicubic", align_corners=False)[0]
    y, x = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    fall = (1 + (y.square() + x.square()) / CORNER**2) ** (-rng.uniform(*STEEP) / 2)
    return torch.fft.irfft2(torch.fft.rfft2(light) * fall, s=(side, side))


def _gaussian(light: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    x = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(light[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights[None, None, :, None]), weights[None, None, None, :])[:, 0]


_LIGHT: dict[np.dtype[Any], NDArray[np.float32]] = {
    np.dtype(kind): srgb_to_light(torch.linspace(0, 1, np.iinfo(kind).max + 1, dtype=torch.float64)).float().numpy()
    for kind in (np.uint8, np.uint16)
}


def to_light(samples: Samples) -> Tensor:
    """(H, W, 1 or 3) stored samples as linear light, (3, H, W) float32 in [0, 1]."""
    light = torch.from_numpy(_LIGHT[samples.dtype][samples]).permute(2, 0, 1)
    return light.expand(3, -1, -1)
