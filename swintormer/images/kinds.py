"""Kinds of pictures that decoders refuse in words of their own, or misread: told by the file's header.

Raw files of cameras are TIFF files that begin with a small copy, which a decoder takes for the picture.

TIFF 6.0, sections 8 and 23; TIFF technical note of Adobe on ICC Lab; TIFF/EP; JPEG, ITU-T T.81, annex B.2.2.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from swintormer.errors import SwintormerError
from swintormer.images.parts import jpeg_segments
from swintormer.images.tiff import Directory, nested_directories, numbers, read_tree

_BITS_PER_SAMPLE, _COLOURS, _SUB_DIRECTORIES, _DNG_VERSION = 0x0102, 0x0106, 0x014A, 0xC612
_BITS = {1, 2, 4, 8, 16, 32, 64}  # of which more than 16 are refused elsewhere, by the kind of their numbers
_COMPRESSION, _JPEG_IN_TIFF, _SAMPLES = 0x0103, 7, 0x0115
_GRAY, _YCBCR = (0, 1), 6
_RAW = "the raw data of a sensor"
_COLOUR_KINDS = {
    8: "Lab colours",
    9: "Lab colours",
    10: "Lab colours",
    32803: _RAW,
    32844: "logarithmic brightness",
    32845: "logarithmic colours",
    34892: _RAW,
}
# Markers that begin a frame: SOF0 to SOF15 without DHT, JPG and DAC.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def check_header(path: Path, form: str) -> None:
    """Raise SwintormerError for a kind of picture that the decoder would call damaged.

    Args:
        form: name in `formats.FORMATS`.
    """
    reader = {"tiff": _tiff, "jpeg": _jpeg}.get(form)
    if reader is None:
        return
    try:
        with path.open("rb") as file:
            found = reader(file)
    except (OSError, struct.error, ValueError):
        return  # the decoder tells what is wrong
    if found:
        raise SwintormerError(f"{path} has {found}: convert it to RGB or gray of 8 or 16 bits first.")


def _tiff(file: BinaryIO) -> str:
    tree = read_tree(file)
    below = tree.first.get(_SUB_DIRECTORIES)
    nested = nested_directories(file, below, tree.form) if below else []
    colours = [number for directory in (tree.first, *nested) for number in _values(directory, _COLOURS)[:1]]
    if _DNG_VERSION in tree.first or any(_COLOUR_KINDS.get(number) == _RAW for number in colours):
        return _RAW
    bits = next((number for number in _values(tree.first, _BITS_PER_SAMPLE) if number not in _BITS), 0)
    own = next(iter(_values(tree.first, _COLOURS)), -1)
    if own == _YCBCR and _values(tree.first, _COMPRESSION) != [_JPEG_IN_TIFF]:
        return "YCbCr colours"  # libvips would take them for RGB, and those of lower resolution for another layout
    samples = next(iter(_values(tree.first, _SAMPLES)), 1)
    if own in _GRAY and samples > 2:
        return f"{samples} channels where gray has one or two"  # libvips would take four for RGB and alpha
    return _COLOUR_KINDS.get(own, "") or (f"{bits} bits per sample" if bits else "")


def _values(directory: Directory, tag: int) -> list[int]:
    return numbers(directory[tag]) if tag in directory else []


def _jpeg(file: BinaryIO) -> str:
    bits = next((content[0] for marker, content in jpeg_segments(file) if marker in _FRAMES and content), 8)
    return "" if bits == 8 else f"{bits} bits per sample"
