"""Coarse to fine: a blur of 12 pixels is one of 6 in the picture at half size, which the network knows from training.

With x the picture, h(x) its half, d the doubling of a picture and f the network, two scales give

    f(x + d(f(h(x)) - h(x)))

and more scales put the same sum in place of f(h(x)). A mild blur is restored better by f alone: at half size it is
nearly gone, and the network sharpens what is sharp. An automatic choice makes both in every tile and takes the sum
where the half-size picture's change is larger (`coarser_share`): a network that is unsure whether a tile is blurred or
soft by nature changes it a little, so how much it changes the tile at two scales tells without the truth which one to
believe.

Both resamplings are torch's cubic ones (the halving over twice the width), and made of a region alone, so that no
picture but the change at each coarser size is held: 12 bytes for each of its pixels of colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

ImageCut: TypeAlias = Callable[[int, slice, slice], Tensor]
"""Number, rows, columns -> (C, rows, columns) of an image."""
ImagePart: TypeAlias = Callable[[int, slice, slice, Tensor], None]
"""Takes number, rows, columns and (C, rows, columns) of an image."""
MOST_SCALES = 3  # of an automatic choice
_HALVING_REACH = 4  # rows at half size: twice as many pixels, more than the cubic kernel of eight takes
_DOUBLING_REACH = 2
# Where the share of the coarser scale begins and where it is whole. Chosen with `small` on training photographs with
# known faults: below these limits more of them lost by the coarser scale than gained, sharp ones most. What comes of
# it: `python -m bench.wide_blur`.
_COARSER = 1.6, 3.2  # ratio of the two scales' mean squares
_ENOUGH = 10**-4.0, 10**-3.6  # mean square of the coarser scale's change: 2.5 to 4 of 255


@dataclass(frozen=True)
class Scale:
    """The images of a run in one resolution.

    Attributes:
        height, width: of every image, in pixels.
        cut: a region of one of them.
    """

    height: int
    width: int
    cut: ImageCut

    def half(self) -> Scale:
        """The images at half size, made from the region that is asked for; an odd side has its last row twice."""

        def cut(image: int, rows: slice, columns: slice) -> Tensor:
            (top, bottom), (left, right) = (
                (max(0, 2 * (span.start - _HALVING_REACH)), min(side, 2 * (span.stop + _HALVING_REACH)))
                for span, side in ((rows, self.height), (columns, self.width))
            )
            part = self.cut(image, slice(top, bottom), slice(left, right))[None]
            part = part.to(torch.promote_types(part.dtype, torch.float32))
            part = F.pad(part, (0, (right - left) % 2, 0, (bottom - top) % 2), mode="replicate")
            size = part.shape[2] // 2, part.shape[3] // 2
            half = F.interpolate(part, size, mode="bicubic", antialias=True)[0]
            return _shifted(half, rows, columns, top // 2, left // 2)

        return Scale(-(-self.height // 2), -(-self.width // 2), cut)

    def keep_change(self, change: Tensor) -> ImagePart:
        """What writes restored parts into (images, C, H, W), less the images."""

        def take(image: int, rows: slice, columns: slice, restored: Tensor) -> None:
            change[image, :, rows, columns] = restored - self.cut(image, rows, columns)

        return take


def doubled(pictures: Tensor) -> ImageCut:
    """Pictures (images, C, H, W) at twice their size."""

    def cut(image: int, rows: slice, columns: slice) -> Tensor:
        (top, bottom), (left, right) = (
            (max(0, span.start // 2 - _DOUBLING_REACH), min(side, -(-span.stop // 2) + _DOUBLING_REACH))
            for span, side in zip((rows, columns), pictures.shape[2:], strict=True)
        )
        double = F.interpolate(pictures[image, None, :, top:bottom, left:right], scale_factor=2, mode="bicubic")[0]
        return _shifted(double, rows, columns, 2 * top, 2 * left)

    return cut


def added(one: ImageCut, other: ImageCut) -> ImageCut:
    """The sum of two images."""
    return lambda *region: one(*region) + other(*region)


def coarser_share(coarser: Tensor, finer: Tensor) -> Tensor:
    """How much of a tile is restored from the coarser scale: where that changes more than the finer one.

    It rises gradually with the mean squares, so that rounding does not decide between two pictures.

    Args:
        coarser, finer: (B, C, H, W), the changes that the two scales make.

    Returns:
        (B, 1, 1, 1), 0 to 1.
    """
    energy = _energy(coarser)
    return _ramp(energy / _energy(finer), *_COARSER) * _ramp(energy, *_ENOUGH)


def _energy(change: Tensor) -> Tensor:
    """Mean square of each tile's change, (B, 1, 1, 1), above zero."""
    return change.float().square().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _ramp(values: Tensor, first: float, last: float) -> Tensor:
    return ((values - first) / (last - first)).clamp(0, 1)


def _shifted(picture: Tensor, rows: slice, columns: slice, top: int, left: int) -> Tensor:
    """Rows and columns of a picture whose first ones are `top` and `left`."""
    return picture[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
