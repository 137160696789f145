"""z_0 of a whole image, and the part of it that belongs to a tile."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageLatent:
    """z_0 of a whole image, (Cz, h, w); a position covers factor x factor pixels."""

    latent: Tensor
    factor: int

    def crop(self, rows: slice, columns: slice) -> Tensor:
        """z_0 of a tile, (Cz, ceil(rows / factor), ceil(columns / factor)), its first position at the tile's corner.

        A tile that begins between two positions gets their mean, weighted by distance; beyond the image, the last
        position is repeated.
        """
        return self._along(self._along(self.latent, 1, rows), 2, columns)

    def _along(self, latent: Tensor, axis: int, span: slice) -> Tensor:
        first, rest = divmod(span.start, self.factor)
        count = -(-(span.stop - span.start) // self.factor)
        here = self._from(latent, axis, first, count)
        if not rest:
            return here
        return here.lerp(self._from(latent, axis, first + 1, count), rest / self.factor)

    @staticmethod
    def _from(latent: Tensor, axis: int, first: int, count: int) -> Tensor:
        places = torch.arange(first, first + count, device=latent.device).clamp_(max=latent.shape[axis] - 1)
        return latent.index_select(axis, places)
