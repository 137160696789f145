"""Coarse to fine: a blur of 12 pixels is one of 6 in the picture at half size, which the network knows from training.

With x the picture, h(x) its half, d the doubling of a picture and f the network, two scales give

    f(x + d(f(h(x)) - h(x)))

and more scales put the same sum in place of f(h(x)). A mild blur is restored better by f alone: at half size it is
nearly gone, and the network sharpens what is sharp. An automatic choice makes both in every tile and takes the sum
where the half-size picture's change is larger (`choice.coarser_share`).

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


def _shifted(picture: Tensor, rows: slice, columns: slice, top: int, left: int) -> Tensor:
    """Rows and columns of a picture whose first ones are `top` and `left`."""
    return picture[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
