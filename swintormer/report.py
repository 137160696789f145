"""A picture of before and after, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from swintormer.images import Image, Samples, save_vips, to_eight_bit, wrap

PANEL = 1200  # longest side of one half in pixels: two fit on a common screen
DIVIDER = 6  # pixels of white between the halves
_BLOCK = 16  # pixels of a side of the squares in which change is looked for


def write_comparison(target: Path, before: Image, after: Samples) -> None:
    """Write before (left) and after (right) as 8-bit samples, turned upright, in the colour profile of the source.

    A picture with a side above `PANEL` is shown reduced, and below it, pixel by pixel, the region that changed most.

    Args:
        after: (H, W, C) restored pixels of `before`.

    Raises:
        SwintormerError: the file cannot be written.
    """
    samples = wrap(before.samples)
    halves = [_upright(half, before) for half in (samples.extract_band(0, n=after.shape[2]), wrap(after))]
    width, height = halves[0].width, halves[0].height
    if max(width, height) <= PANEL:
        picture = _pair(halves)
    else:
        scale = PANEL / max(width, height)
        reduced = [_eight_bit(half.resize(scale)) for half in halves]
        region = _most_changed(halves, reduced[0].width, min(reduced[0].height, reduced[0].width))
        picture = _pair(reduced).join(_pair([half.crop(*region) for half in halves]), "vertical", **_GAP)
    picture = picture.copy()
    profile = before.header.get("icc-profile-data")
    if profile is not None:
        import pyvips

        picture.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    save_vips(target, picture)


_GAP = {"shim": DIVIDER, "background": 255, "expand": True}


def _pair(halves: list[Any]) -> Any:
    left, right = (_eight_bit(half) for half in halves)
    return left.join(right, "horizontal", **_GAP)


def _eight_bit(image: Any) -> Any:
    return to_eight_bit(image) if image.format == "ushort" else image


def _upright(image: Any, source: Image) -> Any:
    image = image.copy()
    image.set_type(*_orientation(source))
    return image.autorot()


def _orientation(source: Image) -> tuple[int, str, int]:
    import pyvips

    return pyvips.GValue.gint_type, "orientation", source.header.get("orientation") or 1


def _most_changed(halves: list[Any], width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the region of that size with the largest sum of absolute differences.

    Sought in steps of `_BLOCK` pixels over block means, so nothing of the picture's size is made.
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
