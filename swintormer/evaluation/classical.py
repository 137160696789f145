"""Classical deconvolution from scikit-image, the baseline of the network.

The blur kernel is unknown, so one defocus disc is assumed for every picture. Pictures are (H, W, C) floats in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from swintormer.data.blurs import RADIUS, disc_kernel

Array = NDArray[np.float32]

GUESSED_RADIUS = 2.0  # pixels; in the middle of the blurs of the held-out table


def wiener(image: Array, balance: float, radius: float = GUESSED_RADIUS) -> Array:
    """Wiener deconvolution with a Laplacian prior; a larger `balance` restores less and amplifies less noise."""
    from skimage.restoration import wiener as deconvolve

    kernel = disc_kernel(radius)
    return _by_channel(image, lambda channel: deconvolve(channel, kernel, balance, clip=False))


def richardson_lucy(image: Array, iterations: int, radius: float = GUESSED_RADIUS) -> Array:
    """Richardson-Lucy deconvolution; more iterations restore more and amplify more noise."""
    from skimage.restoration import richardson_lucy as deconvolve

    kernel = disc_kernel(radius)[RADIUS - int(radius + 1) : RADIUS + int(radius + 1) + 1]  # the rows that are not zero
    kernel = kernel[:, RADIUS - int(radius + 1) : RADIUS + int(radius + 1) + 1]
    return _by_channel(image, lambda channel: deconvolve(channel, kernel, iterations, filter_epsilon=1e-6))


def _by_channel(image: Array, restore: Callable[[Array], Array]) -> Array:
    """Each channel alone, its border mirrored so that deconvolution does not ring there; clipped to [0, 1]."""
    padded = np.pad(image, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="symmetric")
    channels = [restore(np.ascontiguousarray(padded[..., c])) for c in range(image.shape[2])]
    restored = np.stack(channels, axis=2)[RADIUS:-RADIUS, RADIUS:-RADIUS]
    return np.clip(restored, 0, 1).astype(np.float32)


# Weak and strong settings. The network is compared with the best of them for each picture, chosen with the ground
# truth, which no user has.
CLASSICAL: dict[str, Callable[[Array], Array]] = {
    "Wiener, balance 0.01": lambda image: wiener(image, 0.01),
    "Wiener, balance 0.1": lambda image: wiener(image, 0.1),
    "Wiener, balance 1": lambda image: wiener(image, 1.0),
    "Richardson-Lucy, 5 iterations": lambda image: richardson_lucy(image, 5),
    "Richardson-Lucy, 20 iterations": lambda image: richardson_lucy(image, 20),
}
