"""Shapes of blocks worth testing and timing, which the three ops of a block share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A block and its input (batch, channels, height, width).

    Attributes:
        layout: "contiguous", "channels_last", "sliced" (every second column) or "expanded" (one image for the batch).
    """

    channels: int
    heads: int
    height: int
    width: int
    shift: int = 0
    window: int = 16
    batch: int = 1
    bias: bool = False
    layout: str = "channels_last"
    timed: bool = False
    tested: bool = True

    @property
    def hidden(self) -> int:
        return int(self.channels * 2.66)

    def image(self) -> Tensor:
        """Random input."""
        b, c, h, w = self.batch, self.channels, self.height, self.width
        if self.layout == "sliced":
            return torch.randn(b, c, h, 2 * w)[..., ::2]
        if self.layout == "expanded":
            return torch.randn(1, c, h, w).expand(b, -1, -1, -1)
        x = torch.randn(b, c, h, w)
        return x.contiguous(memory_format=torch.channels_last) if self.layout == "channels_last" else x


def _timed(channels: int, heads: int, side: int, shift: int, layout: str = "channels_last") -> Shape:
    return Shape(channels, heads, side, side, shift, layout=layout, timed=True, tested=side <= 32)


# The released network at one 256x256 tile has no other block shapes than the first ten.
BLOCK_SHAPES = {
    "level1, C 48": _timed(48, 1, 128, 0),
    "level1, C 48, shifted": _timed(48, 1, 128, 8),
    "decoder_level1, C 96": _timed(96, 1, 128, 0),
    "decoder_level1, C 96, shifted": _timed(96, 1, 128, 8),
    "level2, C 96": _timed(96, 2, 64, 0),
    "level2, C 96, shifted": _timed(96, 2, 64, 8),
    "level3, C 192": _timed(192, 4, 32, 0),
    "level3, C 192, shifted": _timed(192, 4, 32, 8),
    "latent, C 384": _timed(384, 8, 16, 0),
    "latent, C 384, shifted": _timed(384, 8, 16, 8),
    "level2, C 96, NCHW": _timed(96, 2, 64, 8, "contiguous"),
    "window 8, C 16": Shape(16, 1, 16, 24, shift=4, window=8, batch=2),
    "window 8, NCHW, bias": Shape(16, 1, 16, 24, shift=4, window=8, batch=2, bias=True, layout="contiguous"),
    "one window, odd shift": Shape(24, 2, 16, 16, shift=5, bias=True),
    "window 3, d 1, odd sizes": Shape(6, 3, 9, 15, shift=1, window=3, layout="sliced"),
    "window 7, d 5": Shape(10, 1, 14, 21, shift=6, window=7, batch=2, layout="expanded"),
    "window 2, C 2": Shape(2, 1, 4, 6, shift=1, window=2),
    "empty batch": Shape(16, 1, 16, 16, window=8, batch=0, layout="contiguous"),
}


def element_bytes(elements: int, *weights: Tensor | None) -> int:
    """Bytes of `elements` and of the weights, all in the weights' dtype."""
    present = [weight for weight in weights if weight is not None]
    return (elements + sum(weight.numel() for weight in present)) * present[0].element_size()
