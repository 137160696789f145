"""Comparison pictures: before and after, side by side; and one region of several pictures in full resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from swintormer.images.picture import Image, Samples, to_eight_bit, with_header, wrap
from swintormer.images.vips import libvips
from swintormer.images.writing import save_vips

PANEL = 1200  # longest side of one half in pixels: two fit on a common screen
DIVIDER = 6  # pixels of white between the halves
CAPTION = 24  # rows of white above each part, which hold its caption
_LETTERS = {"font": "sans 14", "dpi": 72}  # 14 pixels
PART = 384  # largest side in pixels of the parts whose change is measured
_BLOCK = 16  # side in pixels of the blocks whose change is compared


def write_comparison(target: Path, before: Image, after: Samples) -> None:
    """Write before (left) and after (right) with 8 bits, in upright orientation, with the colour profile of the source.

    A picture with a side above `PANEL` is shown reduced, with the region that changed most in full resolution below it.

    Args:
        after: (H, W, C) restored pixels of `before`.

    Raises:
        SwintormerError: the file cannot be written.
    """
    halves = upright(before, after)
    if (scale := PANEL / max(halves[0].width, halves[0].height)) >= 1:
        picture = _captioned_row(halves, "at 1:1")
    else:
        reduced = [half.resize(scale) for half in halves]
        region = most_changed(halves, reduced[0].width, min(reduced[0].height, reduced[0].width))
        parts = [half.crop(*region) for half in halves]
        rows = _captioned_row(reduced, f"at {scale:.0%}"), _captioned_row(parts, "what changed most, at 1:1")
        picture = _join(*rows, "vertical")
    save_vips(target, picture)


def upright(before: Image, after: Samples) -> list[Any]:
    """Before and after as libvips images of the same colours and orientation, with 8 bits and the colour profile."""
    shown = before.header.only("orientation", "icc-profile-data")
    colours = wrap(before.samples).extract_band(0, n=after.shape[2])
    return [_eight_bit(with_header(half, shown).autorot()) for half in (colours, wrap(after))]


def busiest_part(image: Image, side: int) -> tuple[Image, tuple[slice, slice]]:
    """The part of at most `side` pixels a side with the strongest edges, and its rows and columns in the picture."""
    edges = _eight_bit(wrap(image.samples)).extract_band(0, n=image.pixels.shape[2]).bandmean().sobel()
    left, top, width, height = _largest(edges, side, side)
    region = slice(top, top + height), slice(left, left + width)
    samples: Samples = np.ascontiguousarray(image.samples[region])  # type: ignore[assignment]
    return replace(image, samples=samples), region


def change(before: Samples, after: Samples) -> float:
    """How little restoring changed a picture: PSNR in dB of after against before, of the part that changed most.

    A picture of up to `PART` pixels a side is one part; a larger one is cut into equal parts, so that a small thing
    that is blurred counts as much in a large picture.

    Args:
        before, after: (H, W, C) of equal shapes and dtypes.

    Returns:
        Infinity for pictures that are equal.
    """
    most = max(
        float(np.square(after[part].astype(np.float32) - before[part]).mean(dtype=np.float64))
        for part in product(*(_parts(length) for length in before.shape[:2]))
    )
    return -10 * math.log10(most / float(np.iinfo(before.dtype).max) ** 2) if most else math.inf


def _parts(length: int) -> list[slice]:
    count = -(-length // PART)
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]


def write_crops(target: Path, pictures: Sequence[Samples], side: int) -> None:
    """Write the square that differs most between the first two pictures, of every picture, side by side with 8 bits.

    Args:
        pictures: (H, W, C) of equal shapes and dtypes.
        side: side of the square in pixels; the picture's own side where that is smaller.

    Raises:
        SwintormerError: the file cannot be written.
    """
    wrapped = [wrap(picture) for picture in pictures]
    region = most_changed(wrapped[:2], side, side)
    save_vips(target, _row([_eight_bit(picture.crop(*region)) for picture in wrapped]))


def most_changed(halves: list[Any], width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the region of that size with the largest sum of absolute differences."""
    return _largest((halves[1] - halves[0]).abs().bandmean(), width, height)


def _largest(values: Any, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the region of that size with the largest sum of a libvips image of one band.

    Compares block means, in steps of `_BLOCK` pixels, so that no array of the picture's size is needed.
    """
    width, height = min(width, values.width), min(height, values.height)
    shrunk = values.shrink(_BLOCK, _BLOCK, ceil=True)
    means = shrunk.numpy().reshape(shrunk.height, shrunk.width).astype(float)  # pyvips gives one pixel no dimensions
    sums = np.pad(means, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows = max(1, min(height // _BLOCK, means.shape[0]))
    columns = max(1, min(width // _BLOCK, means.shape[1]))
    boxes = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    top, left = np.unravel_index(np.argmax(boxes), boxes.shape)
    return (
        min(int(left) * _BLOCK, values.width - width),
        min(int(top) * _BLOCK, values.height - height),
        width,
        height,
    )


def _captioned_row(halves: list[Any], scale: str) -> Any:
    captions = f"before, {scale}", f"after, {scale}"
    return _row([_captioned(half, caption) for half, caption in zip(halves, captions, strict=True)])


def _captioned(picture: Any, caption: str) -> Any:
    """The picture below a line of black on white."""
    vips = libvips()
    try:
        letters = vips.Image.text(caption, **_LETTERS)
    except vips.Error:  # a libvips without text, a system without fonts
        letters = vips.Image.black(1, 1)
    line = letters.embed(2, (CAPTION - letters.height) // 2, letters.width + picture.width, CAPTION).invert()
    line = line.crop(0, 0, picture.width, CAPTION)
    line = line.bandjoin([line] * (picture.bands - 1)) if picture.bands > 1 else line
    return line.copy(interpretation=picture.interpretation).join(picture, "vertical")


def _row(pictures: list[Any]) -> Any:
    """Pictures of one size, from left to right."""
    row, *others = pictures
    for picture in others:
        row = _join(row, picture, "horizontal")
    return row


def _eight_bit(picture: Any) -> Any:
    return to_eight_bit(picture) if picture.format == "ushort" else picture


def _join(first: Any, second: Any, direction: str) -> Any:
    return first.join(second, direction, shim=DIVIDER, background=255, expand=True)
