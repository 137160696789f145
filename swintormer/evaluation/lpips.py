"""LPIPS of a restored picture, from the AlexNet of `training.perceptual`: its shift-tolerant form, 0 for equal."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from swintormer.errors import InputError
from swintormer.evaluation.scores import Array, Distance
from swintormer.training.perceptual import SMALLEST, PerceptualDistance, weights_file


def lpips_available() -> bool:
    """Whether the package with the weights is installed."""
    return weights_file("alex") is not None


@cache
def _distance() -> PerceptualDistance:
    return PerceptualDistance.trained("alex")


@torch.inference_mode()
def lpips(restored: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Perceptual distance of two pictures (H, W, 3), values in [0, 1]; lower is better, 0 if they are equal.

    It is computed over the whole picture, in about 1 kB of memory a pixel.

    Raises:
        SwintormerError: the package `stlpips-pytorch` is not installed.
        InputError: two shapes, not three channels, or a side under 21 pixels.
    """
    if restored.shape != truth.shape or truth.ndim != 3 or truth.shape[2] != 3:
        raise InputError(
            f"Expected two pictures of the same shape (H, W, 3), found {restored.shape} and {truth.shape}."
        )
    if min(truth.shape[:2]) < SMALLEST["alex"]:
        raise InputError(f"LPIPS needs sides of at least {SMALLEST['alex']} pixels, found shape {truth.shape}.")
    a, b = (torch.from_numpy(np.ascontiguousarray(p, np.float32)).permute(2, 0, 1)[None] for p in (restored, truth))
    return float(_distance()(a, b))


def perceptual_distance() -> Distance | None:
    """`lpips` for scores: of gray pictures as of RGB ones, None for too small ones. None without the package."""
    if not lpips_available():
        return None

    def distance(restored: Array, truth: Array) -> float | None:
        if min(truth.shape[:2]) < SMALLEST["alex"]:
            return None
        shape = (*truth.shape[:2], 3)
        return lpips(np.broadcast_to(restored, shape), np.broadcast_to(truth, shape))

    return distance
