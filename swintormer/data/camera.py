"""Degradation by the camera and its file after the blur: noise, 8-bit rounding, JPEG."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def add_noise(rng: np.random.Generator, image: Array, read: float, shot: float) -> Array:
    """Noise of variance read^2 + shot^2 * value; both are standard deviations in [0, 1] units (`shot` at value 1)."""
    sigma = np.sqrt(np.float32(read**2) + np.float32(shot**2) * np.maximum(image, 0))
    return image + sigma * rng.standard_normal(image.shape, dtype=np.float32)


def round_8bit(image: Array) -> Array:
    """Clip to [0, 1] and round to the nearest of 256 levels."""
    return np.rint(np.clip(image, 0, 1) * np.float32(255)) * np.float32(1 / 255)


def jpeg(image: Array, quality: int) -> Array:
    """(H, W, C) in [0, 1], C 1 or 3, through JPEG in memory at `quality` 1..100; chroma at half resolution below 90."""
    import pyvips

    pixels = np.ascontiguousarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    height, width, channels = pixels.shape
    kind = "srgb" if channels == 3 else "b-w"
    picture = pyvips.Image.new_from_memory(pixels.data, width, height, channels, "uchar").copy(interpretation=kind)
    decoded = pyvips.Image.jpegload_buffer(picture.jpegsave_buffer(Q=quality)).numpy()
    return decoded.reshape(pixels.shape).astype(np.float32) * np.float32(1 / 255)


def random_camera(rng: np.random.Generator, image: Array) -> Array:
    """Noise up to about 3/255 (none for one picture in four), then usually 8 bits, for one in five through JPEG."""
    if rng.random() < 0.75:
        read, shot = np.minimum(rng.exponential(0.8, 2), 3.0) / 255
        image = add_noise(rng, image, float(read), float(shot))
    fate = rng.random()
    if fate < 0.2:
        return jpeg(image, int(rng.integers(60, 99)))
    return round_8bit(image) if fate < 0.85 else np.clip(image, 0, 1)
