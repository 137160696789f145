"""A picture in memory: its samples and metadata, also as an image of libvips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swintormer.images.metadata import NOTHING, Extra
from swintormer.images.vips import libvips

Samples = NDArray[np.uint8] | NDArray[np.uint16]
INTERPRETATIONS = {(1, 8): "b-w", (1, 16): "grey16", (3, 8): "srgb", (3, 16): "rgb16"}
UNKNOWN_RESOLUTION = 1.0  # pixels per mm; libvips reports this for files without resolution
MM_PER_INCH = 25.4
_72_DPI = 72 / MM_PER_INCH  # what viewers assume without a resolution


@dataclass(frozen=True)
class Header:
    """Resolution in pixels per mm, and metadata as (libvips type, name, value)."""

    xres: float
    yres: float
    fields: tuple[tuple[int, str, Any], ...]

    def get(self, name: str) -> Any:
        """The value of one field, or None."""
        return next((value for _, key, value in self.fields if key == name), None)

    def only(self, *names: str) -> Header:
        """A copy with the resolution and only these fields."""
        return Header(self.xres, self.yres, tuple(entry for entry in self.fields if entry[1] in names))


@dataclass(frozen=True)
class Stored:
    """How a file stores its samples.

    Attributes:
        quality: of a JPEG file (`parts.jpeg_quality`); None for other formats.
        halved_chroma: whether a JPEG file stores colour at a lower resolution than brightness.
        lossless: whether a WebP file is coded without loss.
    """

    quality: int | None = None
    halved_chroma: bool = False
    lossless: bool = False


@dataclass(frozen=True, eq=False)
class Image:
    """A picture as read from its file.

    Attributes:
        samples: (H, W, C) or, with alpha as the last channel, (H, W, C + 1); C is 1 or 3; uint8 or uint16.
        notes: sentences for the user about the file and what reading changed; mostly empty.
        damage: a sentence about damage of the file, which is one of the notes; mostly empty.
        stored: how the file stores them.
        extra: metadata that libvips does not carry.
    """

    path: Path
    samples: Samples
    has_alpha: bool
    header: Header
    notes: tuple[str, ...] = ()
    damage: str = ""
    stored: Stored = Stored()
    extra: Extra = NOTHING

    @property
    def pixels(self) -> Samples:
        """(H, W, C) without alpha: a view."""
        return self.samples[..., :-1] if self.has_alpha else self.samples

    @property
    def alpha(self) -> Samples | None:
        """(H, W): a view; None if the file has no alpha."""
        return self.samples[..., -1] if self.has_alpha else None

    @property
    def bits(self) -> int:
        return 8 * self.samples.itemsize


def wrap(samples: Samples) -> Any:
    """A libvips image over the array's own memory: (H, W, C), with or without alpha."""
    height, width, bands = samples.shape
    kind = INTERPRETATIONS[3 if bands > 2 else 1, 8 * samples.itemsize]
    memory = np.ascontiguousarray(samples).data
    image = libvips().Image.new_from_memory(
        memory, width, height, bands, "uchar" if samples.itemsize == 1 else "ushort"
    )
    return image.copy(interpretation=kind)


def with_header(image: Any, header: Header) -> Any:
    """The libvips image with a file's resolution and metadata."""
    known = header.xres != UNKNOWN_RESOLUTION or header.yres != UNKNOWN_RESOLUTION
    xres, yres = (header.xres, header.yres) if known else (_72_DPI, _72_DPI)
    image = image.copy(xres=xres, yres=yres)
    for kind, name, value in header.fields:
        image.set_type(kind, name, value)
    return image


def to_eight_bit(image: Any) -> Any:
    """A 16-bit libvips image with 8 bits, rounded: 65535 = 255 * 257."""
    gray = image.bands < 3
    return (image / 257).rint().cast("uchar").copy(interpretation="b-w" if gray else "srgb")
