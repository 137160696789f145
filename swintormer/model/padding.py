"""Padding of images to the sizes that the network takes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """`pad_to` the next multiples."""
    h, w = x.shape[2:]
    return pad_to(x, h + -h % multiple, w + -w % multiple)


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """Pad below and on the right, by reflection as far as the side allows, then by replication.

    Reflection can add at most side - 1 pixels; what is still missing repeats the last row or column.
    """
    h, w = x.shape[2:]
    right, below = width - w, height - h
    if not (right or below):
        return x
    reflect_right, reflect_below = min(right, w - 1), min(below, h - 1)
    x = F.pad(x, (0, reflect_right, 0, reflect_below), mode="reflect")
    return F.pad(x, (0, right - reflect_right, 0, below - reflect_below), mode="replicate")
