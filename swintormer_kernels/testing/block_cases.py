"""Cases of the three ops of a block, which share their shapes, and random weights for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from swintormer_kernels.records import AttentionWeights, FFNWeights
from swintormer_kernels.testing.case import Case, seeded


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


def attention_weights(channels: int, heads: int, window: int, bias: bool = False) -> AttentionWeights:
    """Random weights of the size that a trained network has: logits, bias and clamp all matter."""

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape) * scale

    biases = [randn(3 * channels), randn(3 * channels), randn(channels)] if bias else [None] * 3
    return AttentionWeights(
        1 + randn(channels, scale=0.2),
        randn(channels, scale=0.2),
        randn(3 * channels, channels, 1, 1, scale=channels**-0.5),
        randn(3 * channels, 1, 3, 3, scale=1 / 3),
        randn(channels, channels, 1, 1, scale=channels**-0.5),
        2 + 2 * randn(heads, 1, 1),  # some above ln 100, where the clamp holds them
        randn((2 * window - 1) ** 2, heads),
        *biases,
    )


def ffn_weights(channels: int, hidden: int, bias: bool = False) -> FFNWeights:
    """Random weights that keep the size of what passes through them."""

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape) * scale

    return FFNWeights(
        1 + randn(channels, scale=0.2),
        randn(channels, scale=0.2),
        randn(2 * hidden, channels, 1, 1, scale=channels**-0.5),
        randn(channels, hidden, 1, 1, scale=hidden**-0.5),
        randn(2 * hidden) if bias else None,
        randn(channels) if bias else None,
    )


def arguments_of(op: str, shape: Shape) -> tuple[Any, ...]:
    """Arguments of "swda_attention", "gated_ffn" or "swda_block", random, on the CPU."""
    if op == "gated_ffn":
        return shape.image(), ffn_weights(shape.channels, shape.hidden, shape.bias)
    weights: tuple[Any, ...] = (attention_weights(shape.channels, shape.heads, shape.window, shape.bias),)
    if op == "swda_block":
        weights += (ffn_weights(shape.channels, shape.hidden, shape.bias),)
    return shape.image(), *weights, shape.window, shape.shift


def _cases(op: str, names: Iterable[str] = BLOCK_SHAPES) -> list[Case]:
    shapes = {name: BLOCK_SHAPES[name] for name in names}
    return [seeded(name, partial(arguments_of, op, shape), shape.timed, shape.tested) for name, shape in shapes.items()]


def swda_attention_cases() -> list[Case]:
    """The blocks' shapes of the released network at one 256x256 tile, and unusual ones."""
    return _cases("swda_attention")


def gated_ffn_cases() -> list[Case]:
    """The shapes of the released network at one 256x256 tile, and unusual ones."""
    return _cases("gated_ffn", (name for name in BLOCK_SHAPES if "shifted" not in name))


def swda_block_cases() -> list[Case]:
    """The blocks of the released network at one 256x256 tile, and unusual ones."""
    return _cases("swda_block")
