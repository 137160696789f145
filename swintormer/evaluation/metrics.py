"""The paper's measures of a restored picture against the ground truth (arXiv 2401.05907), for values in [0, 1].

Pictures are numpy arrays (H, W) or (H, W, C) of any float type. Sums run in float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from swintormer.errors import InputError, SwintormerError

ROWS = 256  # rows computed at once, so that only a few megabytes are needed besides the pictures
SSIM_WINDOW = 7


def _check(restored: NDArray[np.floating], truth: NDArray[np.floating]) -> None:
    if restored.shape != truth.shape or truth.ndim not in (2, 3) or truth.size == 0:
        raise InputError(
            f"Expected two pictures of the same shape (H, W) or (H, W, C), found {restored.shape} and {truth.shape}."
        )


def _mean(restored: NDArray[np.floating], truth: NDArray[np.floating], power: int) -> float:
    _check(restored, truth)
    total = 0.0
    for top in range(0, truth.shape[0], ROWS):
        rows = slice(top, top + ROWS)
        difference = restored[rows].astype(np.float64) - truth[rows]
        total += float((np.abs(difference) if power == 1 else difference * difference).sum())
    return total / truth.size


def mae(restored: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Mean absolute error over the whole picture."""
    return _mean(restored, truth, 1)


def psnr(restored: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB over the whole picture, peak 1: -10 log10(mean squared error); inf if equal."""
    mean_square = _mean(restored, truth, 2)
    return -10 * math.log10(mean_square) if mean_square > 0 else math.inf


def ssim(restored: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Structural similarity as scikit-image computes it: uniform window of 7, data range 1, mean over channels.

    1 if equal. Computed in strips of rows that overlap by the window, to save memory, and weighted by their rows, so
    that the result is that of the whole picture.

    Raises:
        InputError: a side is shorter than the window.
        SwintormerError: scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError as error:
        raise SwintormerError(
            'SSIM needs scikit-image, which is not installed: pip install "swintormer-kernels[train]".'
        ) from error
    _check(restored, truth)
    if min(truth.shape[:2]) < SSIM_WINDOW:
        raise InputError(f"SSIM needs sides of at least {SSIM_WINDOW} pixels, found shape {truth.shape}.")
    channel_axis = 2 if truth.ndim == 3 else None
    inner = truth.shape[0] - SSIM_WINDOW + 1  # scikit-image leaves out half a window at each edge
    total = 0.0
    for top in range(0, inner, ROWS):
        count = min(ROWS, inner - top)
        rows = slice(top, top + count + SSIM_WINDOW - 1)
        total += count * structural_similarity(
            restored[rows].astype(np.float64),
            truth[rows].astype(np.float64),
            data_range=1.0,
            win_size=SSIM_WINDOW,
            channel_axis=channel_axis,
        )
    return float(total / inner)
