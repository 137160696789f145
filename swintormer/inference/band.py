"""The band of a restored image to which tiles are still added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from swintormer.execution.tiling import Grid

T = TypeVar("T")


class Band:
    """The part of one image's output that tiles still add to, one tile deep.

    It spans the image's shorter side and moves along the longer one: down an image that is higher than wide, to the
    right over one that is wider. So 30000x300 pixels take as much memory as 300x30000: 0.9 MB with tiles of 256.
    """

    def __init__(self, grid: Grid, channels: int, dtype: torch.dtype, device: torch.device) -> None:
        self.turned = grid.columns.length > grid.rows.length
        self.along, self.across = self._turn(grid.rows, grid.columns)
        height, width = self._turn(self.along.tile, self.across.length)
        self.pixels = torch.zeros(channels, height, width, dtype=dtype, device=device)  # (C_out, H, tile) if turned
        self.along_weights, self.across_weights = (
            torch.from_numpy(axis.weights).to(self.pixels) for axis in (self.along, self.across)
        )

    def walk(self) -> Iterator[tuple[int, int]]:
        """(row, column) of every tile, in the order in which the band takes them."""
        for along, across in product(range(len(self.along.origins)), range(len(self.across.origins))):
            yield self._turn(along, across)

    def add(self, tile: Tensor, row: int, column: int) -> None:
        """Add one restored tile (C_out, h, w), weighted."""
        along, across = self._turn(row, column)
        region = self._upright(self.pixels)[:, :, self.across.span(across)]
        region.addcmul_(self._upright(tile) * self.along_weights[along][:, None], self.across_weights[across])

    def flush(self, row: int, column: int, emit: Callable[[slice, slice, Tensor], None]) -> None:
        """After the last tile across, emit the part that no later tile touches, in tile-long pieces; move the band."""
        along, across = self._turn(row, column)
        if across < len(self.across.origins) - 1:
            return
        pixels, depth = self._upright(self.pixels), self.along.tile
        origin, finished = self.along.origins[along], self.along.finished(along)
        for start in range(0, self.across.length, self.across.tile):
            piece = slice(start, min(start + self.across.tile, self.across.length))
            emit(*self._turn(slice(origin, origin + finished), piece), self._upright(pixels[:, :finished, piece]))
        for start in range(0, depth - finished, finished):  # in steps that do not overlap, so that no copy is needed
            end = min(start + finished, depth - finished)
            pixels[:, start:end] = pixels[:, start + finished : end + finished]
        pixels[:, depth - finished :] = 0

    def _turn(self, first: T, second: T) -> tuple[T, T]:
        """Rows and columns as along and across, or back."""
        return (second, first) if self.turned else (first, second)

    def _upright(self, pixels: Tensor) -> Tensor:
        """(C, rows, columns) as (C, along, across), or back."""
        return pixels.mT if self.turned else pixels
