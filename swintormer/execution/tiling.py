"""The positions of tiles on an image, and the weight of each pixel of a tile.

The grid is the product of two axes and every blend window is separable, so the normalised weight of a tile is an outer
product of two normalised vectors. Tiles are weighted and added straight into the output: no map of the image's size is
needed for the sums of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from swintormer.errors import InputError

Blend = Literal["uniform", "feather"]

PAPER_TILE = 256
PAPER_OVERLAP = 36  # stride 220, arXiv 2401.05907


def default_stride(tile: int) -> int:
    """Stride for a tile of that side: the paper's 220 at 256.

    Smaller tiles overlap by the same share, 36/256, so the work per pixel stays the paper's. Larger tiles overlap by
    the same 36 pixels: the overlap hides errors near the border of a tile, which do not reach further in a larger tile.
    """
    return max(1, tile - min(PAPER_OVERLAP, round(tile * PAPER_OVERLAP / PAPER_TILE)))


@dataclass(frozen=True, eq=False)
class Axis:
    """One side of the grid.

    Attributes:
        length: pixels of the image along this axis.
        tile: pixels of a tile along this axis; the image's own length where that is shorter.
        origins: first pixel of every tile, ascending; the last tile ends at the image's edge.
        weights: float32 (len(origins), tile); the weights of all tiles over one pixel add up to one.
    """

    length: int
    tile: int
    origins: tuple[int, ...]
    weights: NDArray[np.float32]

    def span(self, index: int) -> slice:
        """The image's pixels under tile `index`."""
        return slice(self.origins[index], self.origins[index] + self.tile)

    def finished(self, index: int) -> int:
        """Pixels that no later tile touches once tile `index` is done, counted from that tile's origin."""
        last = index == len(self.origins) - 1
        return self.tile if last else self.origins[index + 1] - self.origins[index]


@dataclass(frozen=True, eq=False)
class Grid:
    """Tiles over an image, in the release's order: row by row, each from left to right."""

    rows: Axis
    columns: Axis

    def __len__(self) -> int:
        return len(self.rows.origins) * len(self.columns.origins)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields (row, column) of every tile, as indices into the axes."""
        for row in range(len(self.rows.origins)):
            for column in range(len(self.columns.origins)):
                yield row, column

    def origin(self, row: int, column: int) -> tuple[int, int]:
        """First (y, x) of a tile."""
        return self.rows.origins[row], self.columns.origins[column]


def make_grid(height: int, width: int, tile: int, stride: int, blend: Blend = "uniform") -> Grid:
    """Tiles of `tile` pixels a side, `stride` apart, over an image of height x width pixels.

    The last tile of a row or column moves back to the image's edge (40 tiles for 1680x1120 at 256 and 220). Along a
    side shorter than a tile there is one tile, as long as that side.

    Args:
        blend: "uniform" averages tiles where they overlap (the paper); "feather" blends neighbouring tiles with a
            sine-squared ramp over their overlap. Neither changes pixels that only one tile covers, up to the image's
            border.

    Raises:
        InputError: a size below one, a stride that leaves gaps, or an unknown blend.
    """
    if height < 1 or width < 1:
        raise InputError(f"An image must have at least one pixel, found {width}x{height}.")
    check_tiling(tile, stride, blend)
    return Grid(_make_axis(height, tile, stride, blend), _make_axis(width, tile, stride, blend))


def check_tiling(tile: int, stride: int, blend: str) -> None:
    """Raises InputError if the tile, stride and blend are not valid for any image."""
    if tile < 1:
        raise InputError(f"The tile must be at least 1 pixel, found {tile}.")
    if not 1 <= stride <= tile:
        raise InputError(f"The stride must be 1 to {tile}, the tile, so that no gap opens; found {stride}.")
    if blend not in get_args(Blend):
        raise InputError(f"The blend must be one of {', '.join(get_args(Blend))}, found {blend!r}.")


def _make_axis(length: int, tile: int, stride: int, blend: Blend) -> Axis:
    tile = min(tile, length)
    origins = (*range(0, length - tile, stride), length - tile)
    windows = np.ones((len(origins), tile))
    if blend == "feather":
        _ramp_overlaps(windows, origins)
    total = np.zeros(length)
    for origin, window in zip(origins, windows, strict=True):
        total[origin : origin + tile] += window
    for index, origin in enumerate(origins):
        windows[index] /= total[origin : origin + tile]
    return Axis(length, tile, origins, windows.astype(np.float32))


def _ramp_overlaps(windows: NDArray[np.float64], origins: tuple[int, ...]) -> None:
    """Ramp each window down over its overlap with the next tile, and the next one up; the two add up to one."""
    tile = windows.shape[1]
    for index, (here, following) in enumerate(pairwise(origins)):
        overlap = here + tile - following
        if overlap > 0:
            rise = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / overlap) ** 2
            windows[index, tile - overlap :] *= rise[::-1]
            windows[index + 1, :overlap] *= rise
