"""Comparison pictures: before and after, side by side; and one region of several pictures in full resolution."""

from __future__ import annotations

from collections.abc import Sequence
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
        picture = _row(halves)
    else:
        reduced = [half.resize(PANEL / longest) for half in halves]
        region = _most_changed(halves, reduced[0].width, min(reduced[0].height, reduced[0].width))
        picture = _join(_row(reduced), _row([half.crop(*region) for half in halves]), "vertical")
    save_vips(target, picture)


def write_crops(target: Path, pictures: Sequence[Samples], side: int) -> None:
    """Write the square that differs most between the first two pictures, of every picture, side by side with 8 bits.

    Args:
        pictures: (H, W, C) of equal shapes and dtypes.
        side: side of the square in pixels; the picture's own side where that is smaller.

    Raises:
        SwintormerError: the file cannot be written.
    """
    wrapped = [wrap(picture) for picture in pictures]
    region = _most_changed(wrapped[:2], side, side)
    save_vips(target, _row([picture.crop(*region) for picture in wrapped]))


def _row(pictures: list[Any]) -> Any:
    """Pictures of one size, from left to right."""
    row, *others = (to_eight_bit(picture) if picture.format == "ushort" else picture for picture in pictures)
    for picture in others:
        row = _join(row, picture, "horizontal")
    return row


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
