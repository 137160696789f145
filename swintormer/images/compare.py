"""Comparison pictures: before and after, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from swintormer.images.io import Image, Samples, save_vips, to_eight_bit, with_header, wrap

PANEL = 1200  # longest side of one half in pixels: two fit on a common screen
DIVIDER = 6  # pixels of white between the halves
_BLOCK = 16  # side in pixels of the blocks whose change is compared


def write_comparison(target: Path, before: Image, after: Samples) -> None:
    """Write before (left) and after (right) with 8 bits, in upright orientation, with the colour profile of the source.

    A picture with a side above `PANEL` is shown reduced, with the region that changed most in full resolution below it.

    Args:
        after: (H, W, C) restored pixels of `before`.

    Raises:
        SwintormerError: the file cannot be written.
    """
    shown = before.header.only("orientation", "icc-profile-data")
    colours = wrap(before.samples).extract_band(0, n=after.shape[2])
    halves = [with_header(half, shown).autorot() for half in (colours, wrap(after))]
    longest = max(halves[0].width, halves[0].height)
    if longest <= PANEL:
        picture = _pair(halves)
    else:
        reduced = [half.resize(PANEL / longest) for half in halves]
        region = _most_changed(halves, reduced[0].width, min(reduced[0].height, reduced[0].width))
        picture = _join(_pair(reduced), _pair([half.crop(*region) for half in halves]), "vertical")
    save_vips(target, picture)


def _pair(halves: list[Any]) -> Any:
    left, right = (to_eight_bit(half) if half.format == "ushort" else half for half in halves)
    return _join(left, right, "horizontal")


def _join(first: Any, second: Any, direction: str) -> Any:
    return first.join(second, direction, shim=DIVIDER, background=255, expand=True)


def _most_changed(halves: list[Any], width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the region of that size with the largest sum of absolute differences.

    Compares block means, in steps of `_BLOCK` pixels, so that no array of the picture's size is needed.
    """
    width, height = min(width, halves[0].width), min(height, halves[0].height)
    change = (halves[1] - halves[0]).abs().bandmean().shrink(_BLOCK, _BLOCK, ceil=True).numpy().astype(float)
    sums = np.pad(change, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows = max(1, min(height // _BLOCK, change.shape[0]))
    columns = max(1, min(width // _BLOCK, change.shape[1]))
    boxes = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    top, left = np.unravel_index(np.argmax(boxes), boxes.shape)
    return (
        min(int(left) * _BLOCK, halves[0].width - width),
        min(int(top) * _BLOCK, halves[0].height - height),
        width,
        height,
    )
