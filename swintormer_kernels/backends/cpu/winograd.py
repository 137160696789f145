"""Packed weights and scratch sizes of the 3x3 convolutions in csrc/denoiser/winograd.h and of 1x1 convolutions."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from swintormer_kernels import native
from swintormer_kernels.packed import packed_weight

ALL_POINTS = (0, 1, 2, 3)
POINTS_OF_DOUBLED = (0, 1, 3)
"""Rows and columns of a transformed tile that are not 0 in an image upsampled by nearest neighbour."""


def transformed_weight(weight: Tensor, panel: int, points: tuple[int, ...], shuffle: int = 1) -> Tensor:
    """`winograd_weight` of the weight `in_order_of_pixels`, cached for each version of `weight`."""
    return packed_weight(
        [weight],
        ("winograd", panel, points, shuffle),
        lambda: winograd_weight(in_order_of_pixels(weight, shuffle), panel, points),
    )


def in_order_of_pixels(weight: Tensor, shuffle: int) -> Tensor:
    """Output channels, in front, in the order in which PixelShuffle(shuffle) lays them out: pixels, then channels."""
    return weight if shuffle == 1 else weight.unflatten(0, (-1, shuffle**2)).transpose(0, 1).flatten(0, 1)


def winograd_weight(weight: Tensor, panel: int, points: tuple[int, ...] = ALL_POINTS) -> Tensor:
    """G w Gt of (out, in, 3, 3) at `points` of both axes: (panels, points^2, in, panel), output channels padded with 0.

    Computed in float64 and rounded once, a panel at a time, so that float64 takes little memory.
    """
    g = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    g = g[list(points)]
    outputs, inputs = weight.shape[:2]
    packed = weight.new_zeros((-(-outputs // panel), len(points) ** 2, inputs, panel))
    for rows, to in zip(weight.split(panel), packed, strict=True):
        to[..., : len(rows)] = (g @ rows.double() @ g.T).flatten(2).permute(2, 1, 0)
    return packed


def in_panels(weight: Tensor, panel: int) -> Tensor:
    """(out, in) or (out, in, 1, 1) as (panels, in, panel), output channels padded with 0; cached."""

    def make() -> Tensor:
        filled = F.pad(weight.flatten(1), (0, 0, 0, -weight.shape[0] % panel))
        return filled.unflatten(0, (-1, panel)).permute(0, 2, 1).contiguous()

    return packed_weight([weight], ("panels", panel), make)


def layout(channels: int, batch: int, height: int, width: int, threads: int) -> tuple[int, int]:
    """(width of a weight panel, floats of scratch) for `channels` input channels and an output of this size."""
    return _layout(channels, batch, height, width, threads, native.extension().isa())


@functools.lru_cache(maxsize=256)
def _layout(channels: int, batch: int, height: int, width: int, threads: int, isa: str) -> tuple[int, int]:
    return native.extension().conv3x3_layout(batch, channels, height, width, threads)
