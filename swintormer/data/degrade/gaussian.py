"""Gaussian kernels: lens softness, filters, what is left of a blur that has no sharp edge."""

from __future__ import annotations

import numpy as np

from swintormer.data.degrade.bank import Array, grid, reach_for

TAIL = 3.0  # deviations kept: 0.3 % of a Gaussian's light lies beyond in one dimension


def gaussian(sigma: float, ratio: float = 1.0, angle: float = 0.0, reach: int | None = None) -> Array:
    """(2 r + 1, 2 r + 1) of sum 1: `sigma` pixels along `angle` (radians from x to y), `ratio * sigma` across it."""
    y, x = grid(reach_for(TAIL * sigma) if reach is None else reach)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    kernel = np.exp(-0.5 * ((along / sigma) ** 2 + (across / (ratio * sigma)) ** 2))
    return (kernel / kernel.sum()).astype(np.float32)
