"""An endless sequence of blurred and sharp pictures in pairs, each a function of (seed, index) alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from swintormer.data.blurs import GAMMA, RADIUS, blur, random_kernels, smooth_field
from swintormer.data.camera import random_camera
from swintormer.data.scenes import make_scene

JPEG_GRID = 16  # JPEG's block with halved chroma: crops start anywhere on it, as in a file
MARGIN = JPEG_GRID + 2 * RADIUS  # pixels that a pair's region of a scene is larger than the crop
SCENE_POOL = 32  # scenes held at once; a multiple of batch * workers keeps workers from making one twice
SCENE_USES = 24  # crops from one scene: a 512x512 scene costs about 15 crops and holds 16 of side 128 side by side


class Scenes:
    """Generated pictures in endless supply: `scenes[i]` (side, side, 3) is what pair i is cut from, any i >= 0.

    Neighbours come from different scenes; scenes live through SCENE_USES crops and are replaced one at a time, so the
    cost is even. `key` is the only source of chance.
    """

    def __init__(self, key: tuple[int, ...], side: int):
        self.key, self.side = key, side
        self._held: dict[int, tuple[int, NDArray[np.float32]]] = {}  # slot: number and picture

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        turn, slot = divmod(index, SCENE_POOL)
        number = (turn + slot * SCENE_USES // SCENE_POOL) // SCENE_USES * SCENE_POOL + slot
        if slot not in self._held or self._held[slot][0] != number:
            self._held[slot] = number, make_scene(np.random.default_rng((*self.key, 0, number)), self.side)
        return self._held[slot][1]


class SyntheticPairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """`pairs[i]` is (blurred, sharp), both float32 (3, crop, crop) in [0, 1]; any i >= 0.

    Pair i is the same in every run, process and order of access.

    Args:
        seed: the only source of randomness besides the index. `stream` separates training (0) from validation (1).
        crop: side of a pair in pixels.
        scene_side: side of the scenes that crops are cut from; None takes 512 or what the crop needs.
    """

    def __init__(self, seed: int, crop: int, scene_side: int | None = None, stream: int = 0):
        self.region = crop + MARGIN
        self.crop = crop
        self.scene_side = scene_side or max(512, 2 * self.region)
        if self.scene_side < self.region:
            raise ValueError(f"scene_side {self.scene_side} must hold a crop and its margins, {self.region}")
        self.key = (seed, stream)
        self.scenes = Scenes(self.key, self.scene_side)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        scene = self.scenes[index]
        rng = np.random.default_rng((*self.key, 1, index))
        top, left = rng.integers(0, self.scene_side - self.region + 1, 2)
        return simple_pair(rng, scene[top : top + self.region, left : left + self.region])

    def batch(self, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs start ... start + size - 1, stacked: two tensors (size, 3, crop, crop)."""
        blurred, sharp = zip(*(self[i] for i in range(start, start + size)), strict=True)
        return torch.stack(blurred), torch.stack(sharp)

    def describe(self) -> str:
        """One line for the model card."""
        return "synthetic pairs: dead leaves and textures; no photograph"


class SceneWindows:
    """`windows[i]` is a window (3, side, side), float32 in [0, 1], of a generated scene; any i >= 0."""

    def __init__(self, key: tuple[int, ...], side: int, scene_side: int | None = None):
        self.key, self.side = key, side
        self.scenes = Scenes(key, max(scene_side or 512, 2 * side))

    def __getitem__(self, index: int) -> torch.Tensor:
        scene = self.scenes[index]
        rng = np.random.default_rng((*self.key, 1, index))
        top, left = rng.integers(0, self.scenes.side - self.side + 1, 2)
        window = scene[top : top + self.side, left : left + self.side]
        return _turned(window, int(rng.integers(4)), bool(rng.integers(2)))


def simple_pair(rng: np.random.Generator, sharp: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Blur a region with kernels of `blurs.random_kernels`, pass it through `camera.random_camera`, mirror and turn it.

    Args:
        sharp: (crop + MARGIN, crop + MARGIN, 3), values as a file stores them.

    Returns:
        blurred and sharp, both (3, crop, crop).
    """
    crop, inner = len(sharp) - MARGIN, len(sharp) - 2 * RADIUS
    kernels = random_kernels(rng)
    field = smooth_field(rng, inner, inner) if len(kernels) > 1 else None
    if rng.random() < 0.5:  # as light mixes in a camera
        blurred = np.maximum(blur(sharp ** np.float32(GAMMA), kernels, field), 0) ** np.float32(1 / GAMMA)
    else:  # as stored values mix when a file is blurred, or a phone's tone curve is flat
        blurred = blur(sharp, kernels, field)
    blurred = random_camera(rng, blurred)
    y, x = rng.integers(0, JPEG_GRID, 2)
    cut = (slice(y, y + crop), slice(x, x + crop))
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    sharp = sharp[RADIUS:-RADIUS, RADIUS:-RADIUS]
    return _turned(blurred[cut], turns, mirror), _turned(sharp[cut], turns, mirror)


def _turned(image: NDArray[np.float32], turns: int, mirror: bool) -> torch.Tensor:
    """(H, W, 3), mirrored and turned by quarters: one of eight ways. Returns (3, H, W)."""
    turned = np.rot90(image[:, ::-1] if mirror else image, turns)
    return torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1)))
