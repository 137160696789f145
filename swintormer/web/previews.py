"""What the page shows of a picture: tiles of 8 bits, upright, in full size and in halves of it, as a map is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swintormer.errors import SwintormerError
from swintormer.images.picture import Image, Samples, to_eight_bit, with_header, wrap
from swintormer.images.vips import detail, libvips

TILE = 512  # side in pixels
THUMB = 128  # shorter side in pixels of the picture in the list
_LARGEST_PROFILE = 65536  # bytes; every tile carries the profile, and those of presses are megabytes
_PNG = {"compression": 1, "keep": "icc"}  # 512x512 pixels of a photograph in 8 ms on a Zen 4 core


@dataclass(frozen=True)
class Levels:
    """Files of one picture: level 0 in full size, each further one half as large, down to a single tile.

    Attributes:
        folder, name: the files are folder/name-0.v and so on, in libvips' own format, from which a tile is read alone.
        width, height: of level 0, upright.
        count: of levels.
        transparent: whether the picture has alpha.
    """

    folder: Path
    name: str
    width: int
    height: int
    count: int
    transparent: bool = False

    def path(self, level: int) -> Path:
        return self.folder / f"{self.name}-{level}.v"

    def tile(self, level: int, column: int, row: int) -> bytes:
        """PNG of one tile, smaller at the right and lower edges.

        Raises:
            SwintormerError: there is no such tile, or its file is gone.
        """
        if not 0 <= level < self.count:
            raise SwintormerError("There is no such level.")
        vips = libvips()
        try:
            image = vips.Image.new_from_file(str(self.path(level)))
            left, top = column * TILE, row * TILE
            if not (0 <= left < image.width and 0 <= top < image.height):
                raise SwintormerError("There is no such tile.")
            part = image.crop(left, top, min(TILE, image.width - left), min(TILE, image.height - top))
            return bytes(part.write_to_buffer(".png", **_PNG))
        except vips.Error as error:
            raise SwintormerError(f"The picture is not there any more ({detail(error)}).") from error

    def thumb(self) -> bytes:
        """PNG of the whole picture, small.

        Raises:
            SwintormerError: its file is gone.
        """
        vips = libvips()
        try:
            image = vips.Image.new_from_file(str(self.path(self.count - 1)))
            scale = min(1.0, THUMB / min(image.width, image.height))
            return bytes(image.resize(scale).write_to_buffer(".png", **_PNG))
        except vips.Error as error:
            raise SwintormerError(f"The picture is not there any more ({detail(error)}).") from error


def make_levels(folder: Path, name: str, source: Image, pixels: Samples) -> Levels:
    """Write the levels of a picture: of the source itself (its `pixels`), or of its restoration.

    Raises:
        SwintormerError: they cannot be written, as on a full disk.
    """
    vips = libvips()
    try:
        image = _shown(source, pixels)
        levels = Levels(folder, name, image.width, image.height, _count(image.width, image.height), source.has_alpha)
        for level in range(levels.count):
            image.write_to_file(str(levels.path(level)))
            image = vips.Image.new_from_file(str(levels.path(level)))
            image = image.shrink(2, 2, ceil=True)
        return levels
    except vips.Error as error:
        raise SwintormerError(f"Cannot write the preview of {source.path}: {detail(error)}.") from error


def _count(width: int, height: int) -> int:
    count = 1
    while max(width, height) > TILE:
        width, height, count = -(-width // 2), -(-height // 2), count + 1
    return count


def _shown(source: Image, pixels: Samples) -> Any:
    """Upright, with 8 bits, transparency and colour profile; the browser turns its colours into those of the screen."""
    image = wrap(pixels)
    if source.has_alpha:
        samples = wrap(source.samples)
        image = image.bandjoin(samples.extract_band(samples.bands - 1))
    image = with_header(image, source.header.only("orientation", "icc-profile-data"))
    if image.format == "ushort":
        image = to_eight_bit(image)
    profile = source.header.get("icc-profile-data")
    if profile is not None and len(profile) > _LARGEST_PROFILE:
        image = image.icc_transform("srgb", embedded=True)
        image.remove("icc-profile-data")
    # autorot needs rows in any order, and what it reads here is memory.
    return image.autorot()
