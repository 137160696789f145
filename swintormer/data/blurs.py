"""Blurs: kernels, and their mixture over a picture.

Every kernel is (2 * RADIUS + 1)^2, float32, not negative, of sum 1, with its centre of mass at the middle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

RADIUS = 15  # reach of the largest kernel in pixels: a 15-pixel path, a disc of 5 or a Gaussian of 3 fit with room
GAMMA = 2.2  # exponent from stored values to linear light, close enough to sRGB for training


def _grid() -> tuple[Array, Array]:
    axis = np.arange(-RADIUS, RADIUS + 1, dtype=np.float32)
    return axis[:, None], axis[None, :]


def disc_kernel(radius: float, softness: float = 0.5) -> Array:
    """Defocus: a disc of `radius` pixels whose edge falls off over 2 * `softness` pixels; 0.5 covers by area."""
    y, x = _grid()
    kernel = np.clip((radius - np.hypot(y, x)) / (2 * softness) + 0.5, 0, 1)
    kernel[RADIUS, RADIUS] = max(kernel[RADIUS, RADIUS], 1e-3)  # a radius near 0 is the identity
    return (kernel / kernel.sum()).astype(np.float32)


def gaussian_kernel(sigma: float, ratio: float = 1.0, angle: float = 0.0) -> Array:
    """Gaussian of `sigma` pixels along `angle` (radians) and `ratio * sigma` across it."""
    y, x = _grid()
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    kernel = np.exp(-0.5 * ((along / sigma) ** 2 + (across / (ratio * sigma)) ** 2))
    return (kernel / kernel.sum()).astype(np.float32)


def motion_kernel(path: NDArray[np.floating]) -> Array:
    """Camera shake along `path` (T, 2), (y, x) in pixels, equal time between points; spread bilinearly on the grid."""
    points = np.clip(path - path.mean(axis=0), 1 - RADIUS, RADIUS - 1) + RADIUS
    corner = np.floor(points).astype(np.int64)
    part = points - corner
    kernel = np.zeros((2 * RADIUS + 1, 2 * RADIUS + 1))
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
            np.add.at(kernel, (corner[:, 0] + dy, corner[:, 1] + dx), weight)
    return (kernel / kernel.sum()).astype(np.float32)


def random_path(rng: np.random.Generator, length: float, points: int = 64) -> NDArray[np.float64]:
    """A smooth path (points, 2) of the given length in pixels: a heading that turns steadily, a speed that varies."""
    time = np.linspace(-1, 1, points)
    turn = rng.normal(0, [0.0, 0.9, 0.6]) @ np.stack([time**0, time, time**2])
    heading = rng.uniform(0, 2 * np.pi) + turn
    speed = np.exp(0.4 * rng.standard_normal() * time)
    steps = np.stack([np.sin(heading), np.cos(heading)], axis=1) * speed[:, None]
    return np.cumsum(steps, axis=0) * (length / speed.sum())


def random_kernels(rng: np.random.Generator) -> list[Array]:
    """One to three kernels of one family, from weak to strong: the blurs of one picture.

    Families: 10 % identity, 35 % defocus discs of radius 0.5 to 5, 30 % motion of 1 to 15 pixels, 25 % Gaussians of
    sigma 0.3 to 3. Small sizes are more frequent, as in photographs.
    """
    family = rng.choice(4, p=(0.1, 0.35, 0.3, 0.25))
    count = int(rng.choice(3, p=(0.4, 0.35, 0.25))) + 1
    strength = np.sort(np.clip(rng.beta(1.2, 1.8) + rng.uniform(-0.25, 0.25, count), 0, 1))
    if count == 1:
        strength = rng.beta(1.2, 1.8, 1)
    if family == 0:
        return [disc_kernel(0.0)]
    if family == 1:
        softness = rng.uniform(0.5, 1.0)
        return [disc_kernel(0.5 + 4.5 * s, softness) for s in strength]
    if family == 2:
        path = random_path(rng, 1.0)
        return [motion_kernel(path * (1 + 14 * s)) for s in strength]
    ratio, angle = (1.0, 0.0) if rng.random() < 0.6 else (rng.uniform(0.4, 1.0), rng.uniform(0, np.pi))
    return [gaussian_kernel(0.3 + 2.7 * s, ratio, angle) for s in strength]


def smooth_field(rng: np.random.Generator, height: int, width: int) -> Array:
    """(height, width) field in [0, 1] of a few waves longer than the picture's side: how blur varies over it."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    field = np.zeros((height, width), dtype=np.float32)
    for _ in range(3):
        fy, fx = np.float32(2 * np.pi) * rng.uniform(-0.9, 0.9, 2).astype(np.float32)
        field += np.sin(fy * y + fx * x + np.float32(rng.uniform(0, 2 * np.pi)))
    low, high = field.min(), field.max()
    return (field - low) / max(float(high - low), 1e-6)


def blur(image: Array, kernels: Sequence[Array], field: Array | None = None) -> Array:
    """Blur (H, W, 3) with kernels that change over the picture; returns the inner (H - 2 RADIUS, W - 2 RADIUS, 3).

    Args:
        image: values in any unit; RADIUS pixels at each edge are only read, so no border has to be made up.
        kernels: K kernels; every pixel gets the linear blend of the two selected by `field`.
        field: of the inner size; 0 selects the first kernel and 1 the last; None only with a single kernel.
    """
    height, width = image.shape[:2]
    spectrum = np.fft.rfft2(image, axes=(0, 1))
    results = []
    for kernel in kernels:
        response = np.fft.rfft2(kernel, s=(height, width))
        full = np.fft.irfft2(spectrum * response[..., None], s=(height, width), axes=(0, 1))
        results.append(full[2 * RADIUS :, 2 * RADIUS :].astype(np.float32, copy=False))
    if field is None or len(results) == 1:
        return results[0]
    position = (field * np.float32(len(results) - 1))[..., None]
    weights = [np.maximum(1 - np.abs(position - k), 0) for k in range(len(results))]
    return sum(w * r for w, r in zip(weights, results, strict=True))
