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


class SyntheticPairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """`pairs[i]` is (blurred, sharp), both float32 (3, crop, crop) in [0, 1]; any i >= 0.

    Pair i is the same in every run, process and order of access. Neighbours come from different scenes. A scene is used
    for SCENE_USES crops, and scenes are replaced one at a time, so the cost is spread evenly.

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
        self._scenes: dict[int, tuple[int, NDArray[np.float32]]] = {}  # slot: number and picture

    def _scene(self, index: int) -> NDArray[np.float32]:
        turn, slot = divmod(index, SCENE_POOL)
        number = (turn + slot * SCENE_USES // SCENE_POOL) // SCENE_USES * SCENE_POOL + slot
        if slot not in self._scenes or self._scenes[slot][0] != number:
            self._scenes[slot] = number, make_scene(np.random.default_rng((*self.key, 0, number)), self.scene_side)
        return self._scenes[slot][1]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        scene = self._scene(index)
        rng = np.random.default_rng((*self.key, 1, index))
        top, left = rng.integers(0, self.scene_side - self.region + 1, 2)
        sharp = scene[top : top + self.region, left : left + self.region]
        inner = self.region - 2 * RADIUS
        kernels = random_kernels(rng)
        field = smooth_field(rng, inner, inner) if len(kernels) > 1 else None
        if rng.random() < 0.5:  # as light mixes in a camera
            blurred = np.maximum(blur(sharp ** np.float32(GAMMA), kernels, field), 0) ** np.float32(1 / GAMMA)
        else:  # as stored values mix when a file is blurred, or a phone's tone curve is flat
            blurred = blur(sharp, kernels, field)
        blurred = random_camera(rng, blurred)
        y, x = rng.integers(0, JPEG_GRID, 2)
        cut = (slice(y, y + self.crop), slice(x, x + self.crop))
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        sharp = sharp[RADIUS:-RADIUS, RADIUS:-RADIUS]
        return _turned(blurred[cut], turns, mirror), _turned(sharp[cut], turns, mirror)

    def batch(self, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs start ... start + size - 1, stacked: two tensors (size, 3, crop, crop)."""
        blurred, sharp = zip(*(self[i] for i in range(start, start + size)), strict=True)
        return torch.stack(blurred), torch.stack(sharp)


def _turned(image: NDArray[np.float32], turns: int, mirror: bool) -> torch.Tensor:
    """(H, W, 3), mirrored and turned by quarters: one of eight ways. Returns (3, H, W)."""
    turned = np.rot90(image[:, ::-1] if mirror else image, turns)
    return torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1)))
