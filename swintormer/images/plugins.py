"""Formats that libvips' usual builds do not read, through Pillow and its plugins where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swintormer.errors import SwintormerError, first_line
from swintormer.signals import interruptible

PACKAGES = {
    "heic": ("pillow_heif", "pillow-heif"),
    "jxl": ("pillow_jxl", "pillow-jxl-plugin"),
    "bmp": ("PIL", "pillow"),
}
"""For each format the module that reads it, and the package to install for it."""

_MODES = {"L": np.uint8, "LA": np.uint8, "RGB": np.uint8, "RGBA": np.uint8, "I;16": np.uint16}
_UNKNOWN_DPI = 25.4  # libvips' number for files without resolution, 1 pixel per mm


@dataclass(frozen=True)
class Found:
    """What Pillow makes of a file.

    Attributes:
        samples: (H, W, C) with alpha as the last channel.
        exif: block beginning with "Exif", or empty. xmp, profile: or empty.
        dpi: horizontal and vertical.
        notes: sentences for the user.
    """

    samples: NDArray[np.uint8] | NDArray[np.uint16]
    exif: bytes
    xmp: bytes
    profile: bytes
    dpi: tuple[float, float]
    notes: tuple[str, ...]


def is_installed(form: str) -> bool:
    """Whether the format is one of PACKAGES and its module is there."""
    return form in PACKAGES and importlib.util.find_spec(PACKAGES[form][0]) is not None


def read(path: Path, form: str, check_size: Callable[[int, int], None]) -> Found:
    """Read a picture.

    Args:
        form: a name in PACKAGES that is installed.
        check_size: called with width and height before the samples are decoded.

    Raises:
        SwintormerError: the file is damaged, or has several frames or other samples.
        OSError, MemoryError: it cannot be read.
    """
    plugin = importlib.import_module(PACKAGES[form][0])
    from PIL import Image

    if form == "heic":
        plugin.register_heif_opener()
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow's own; ours is `check_size`
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            picture = Image.open(file)
            check_size(*picture.size)
            if (frames := getattr(picture, "n_frames", 1)) > 1:
                raise SwintormerError(f"{path} holds {frames} pages or frames: save each as a file of its own first.")
            interruptible(picture.load, lambda: None)
            return _found(path, picture)
    except (SwintormerError, MemoryError):
        raise
    except Exception as error:  # plugins raise what they like
        if isinstance(error, OSError) and error.errno:
            raise
        raise SwintormerError(
            f"{path} is damaged, cut short or of a rare kind ({first_line(error)}): copy it again from where it came, "
            "or convert it."
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _found(path: Path, picture: Any) -> Found:
    info, notes = dict(picture.info), []
    if picture.mode == "P":
        notes.append(f"{path} has a palette, which cannot hold restored colours: it is written as RGB.")
        picture = picture.convert("RGBA" if "transparency" in info else "RGB")
    elif picture.mode == "1":
        notes.append(f"{path} has 1 bit per sample: it is written with 8.")
        picture = picture.convert("L")
    if picture.mode not in _MODES:
        raise SwintormerError(f"{path} has samples of kind {picture.mode}: convert it to gray or RGB first.")
    bits = info.get("bit_depth", 8)
    if bits > 8 and picture.mode != "I;16":
        notes.append(f"{path} has {bits} bits per channel, of which its reader gives 8.")
    samples = np.array(picture, _MODES[picture.mode])
    exif = info.get("exif") or b""
    if exif[:2] in (b"II", b"MM"):  # plugins differ in whether they keep the beginning of the block
        exif = b"Exif\0\0" + exif
    xmp, profile = (info.get(name) for name in ("xmp", "icc_profile"))
    return Found(
        samples.reshape(*samples.shape[:2], -1),
        exif,
        xmp if isinstance(xmp, bytes) else b"",
        profile if isinstance(profile, bytes) else b"",
        info.get("dpi", (_UNKNOWN_DPI, _UNKNOWN_DPI)),
        tuple(notes),
    )
