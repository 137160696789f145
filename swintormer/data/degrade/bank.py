"""Convolution with banks of kernels: blur that varies over a picture, as a blend of a few blurs that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from swintormer.data.degrade.stacks import rows

Array = NDArray[np.float32]

REACHES = (0, 4, 8, 12, 16, 24)  # few sizes, so that samples of a batch share one; FFTs are cheap
REACH = REACHES[-1]


@dataclass(frozen=True)
class Bank:
    """K kernels and the share of each at every pixel.

    Attributes:
        kernels: (V, K, 2 r + 1, 2 r + 1) with r one of REACHES, for V views (1, or 2 of a dual-pixel sensor).
            Those of a view sum to 1 over their pixels.
        weights: (K, h, w) of sum 1 over K, or None for a single kernel.
    """

    kernels: Array
    weights: Array | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Samples of one key can be computed as one batch."""
        return ("bank", self.kernels.shape, self.weights is None)


def reach_for(pixels: float) -> int:
    """The least of REACHES that holds a kernel which reaches `pixels` from its middle."""
    return next((reach for reach in REACHES if pixels <= reach), REACH)


def grid(reach: int) -> tuple[Array, Array]:
    """y as a column and x as a row, from -reach to reach."""
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    return axis[:, None], axis[None, :]


def impulse(views: int = 1) -> Array:
    """(V, 1, 1, 1): the kernel that leaves a picture as it is."""
    return np.ones((views, 1, 1, 1), np.float32)


def padded(kernel: Array, reach: int) -> Array:
    """A kernel (..., k, k) in the middle of a larger one of zeros."""
    rim = reach - kernel.shape[-1] // 2
    return np.pad(kernel, [(0, 0)] * (kernel.ndim - 2) + [(rim, rim)] * 2)


def combined(first: Array, second: Array) -> Array:
    """The kernel (..., k, k) of one blur after another; their reaches must add up to at most REACH.

    Also of a dual-pixel pair (2, 1, k, k) with a kernel (1, 1, k, k).
    """
    size = first.shape[-1] + second.shape[-1] - 1
    spectrum = np.fft.rfft2(first, s=(size, size)) * np.fft.rfft2(second, s=(size, size))
    kernel = np.maximum(np.fft.irfft2(spectrum, s=(size, size)), 0).astype(np.float32)
    kernel /= kernel.sum(axis=(-2, -1), keepdims=True)
    return padded(kernel, reach_for(size // 2))


def blend_weights(position: Array, count: int) -> Array:
    """(K, h, w): piecewise-linear shares of `count` blurs where `position` (h, w) runs from 0 to count - 1."""
    return np.maximum(1 - np.abs(position[None] - np.arange(count, dtype=np.float32)[:, None, None]), 0)


def corner_weights(height: int, width: int) -> Array:
    """(4, h, w): bilinear shares of the blurs at the corners: top left, top right, bottom left, bottom right."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    return np.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x])


def spectrum_size(pixels: int) -> int:
    """The least even length from `pixels` on of factors 2, 3 and 5, for which FFTs are fast."""
    size = pixels + pixels % 2
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 2


def inner(images: torch.Tensor, rim: int) -> torch.Tensor:
    """(..., H - 2 rim, W - 2 rim): without `rim` pixels at each edge."""
    return images[..., rim : images.shape[-2] - rim, rim : images.shape[-1] - rim]


class Convolver:
    """Pictures (B, C, H + 2 r, W + 2 r) to be convolved with kernels that reach r pixels; their spectrum is kept.

    Wrapping around is harmless: pixels that it touches are not returned.
    """

    def __init__(self, images: torch.Tensor, reach: int):
        self.reach = reach
        self.size = (images.shape[-2], images.shape[-1])
        self.padded = (spectrum_size(self.size[0]), spectrum_size(self.size[1]))
        self.spectrum = torch.fft.rfft2(images, s=self.padded)

    def __call__(self, kernels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) with kernels (B, 2 r + 1, 2 r + 1)."""
        response = torch.fft.rfft2(kernels, s=self.padded)[:, None]
        full = torch.fft.irfft2(self.spectrum * response, s=self.padded)
        return full[..., 2 * self.reach : self.size[0], 2 * self.reach : self.size[1]]


def apply_banks(scenes: torch.Tensor, banks: Sequence[Bank]) -> tuple[torch.Tensor, torch.Tensor]:
    """Blurred (B, V, C, h, w) and sharp (B, C, h, w) light.

    Args:
        scenes: (B, C, h + 2 REACH, w + 2 REACH) linear light.
        banks: B of them, of one key.
    """
    sharp = inner(scenes, REACH)
    kernels = rows([bank.kernels for bank in banks], scenes)
    views, count, size = kernels.shape[1:4]
    if size == 1:
        return sharp[:, None].expand(-1, views, -1, -1, -1), sharp
    convolve = Convolver(inner(scenes, REACH - size // 2), size // 2)
    shares = (
        None if banks[0].weights is None else rows([bank.weights for bank in banks if bank.weights is not None], scenes)
    )
    results = []
    for view in range(views):
        result = convolve(kernels[:, view, 0])
        if shares is not None:
            result = result * shares[:, 0:1]
            for k in range(1, count):
                result = result.addcmul_(convolve(kernels[:, view, k]), shares[:, k : k + 1])
        results.append(result)
    return torch.stack(results, 1), sharp
