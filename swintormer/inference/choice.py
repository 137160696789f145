"""Which of two restorations of a tile is taken: the one of a coarser scale, or that of a second network.

A network that is unsure whether a tile is blurred or soft by nature changes it a little. How much two of them change it
tells without the truth which one to believe. A share between 0 and 1 rises gradually with the ratio of the mean
squares, so that rounding does not decide between two pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Where a share begins and where it is whole. Chosen with `small` on training photographs with known faults: below these
# limits more of them lost by the coarser scale than gained, sharp ones most. What comes of it: `python -m
# bench.wide_blur`.
_COARSER = 1.6, 3.2  # ratio of the two scales' mean squares
_ENOUGH = 10**-4.0, 10**-3.6  # mean square of the coarser scale's change: 2.5 to 4 of 255
# Ratio of the network's mean square to the guard's. Chosen on training photographs, where limits of 2.6 and 4 cost more
# of what the network gains than they kept it from losing: `python -m bench.guard FOLDER --limits 2.6 4`.
FURTHER = 4.0, 8.0


def coarser_share(coarser: Tensor, finer: Tensor) -> Tensor:
    """How much of a tile is restored from the coarser scale: where that changes more than the finer one.

    Args:
        coarser, finer: (B, C, H, W), the changes that the two scales make.

    Returns:
        (B, 1, 1, 1), 0 to 1.
    """
    energy = _energy(coarser)
    return _ramp(energy / _energy(finer), *_COARSER) * _ramp(energy, *_ENOUGH)


def guard_share(change: Tensor, guard: Tensor) -> Tensor:
    """How much of a tile the guard restores: where the network changes much more than it.

    It was chosen for `strong`, which takes soft photographs for blurred ones, and `small` as its guard: MODEL_CARD.md.

    Args:
        change, guard: (B, C, H, W), the changes that the two networks make.

    Returns:
        (B, 1, 1, 1), 0 to 1.
    """
    return _ramp(_energy(change) / _energy(guard), *FURTHER)


def most_changed(change: Tensor, height: int, width: int) -> list[tuple[slice, slice]]:
    """Where in each tile the change is largest: rows and columns of a part of height x width.

    The parts that are compared lie half a part from one another, the last ones at the tile's edge. Of two that change
    alike, rounding may decide.

    Args:
        change: (B, C, H, W) with H >= height, W >= width.
    """
    energy = change.float().square().mean(1)
    tops, lefts = (
        [*range(0, whole - part, max(part // 2, 1)), whole - part]
        for whole, part in zip(change.shape[-2:], (height, width), strict=True)
    )
    strips = torch.stack([energy[:, top : top + height].sum(1) for top in tops], 1)
    parts = torch.stack([strips[..., left : left + width].sum(-1) for left in lefts], -1)
    best = (divmod(place, len(lefts)) for place in parts.flatten(1).argmax(1).tolist())
    return [(slice(tops[i], tops[i] + height), slice(lefts[j], lefts[j] + width)) for i, j in best]


def _energy(change: Tensor) -> Tensor:
    """Mean square of each tile's change, (B, 1, 1, 1), above zero."""
    return change.float().square().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _ramp(values: Tensor, first: float, last: float) -> Tensor:
    return ((values - first) / (last - first)).clamp(0, 1)
