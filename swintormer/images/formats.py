"""Formats of files: what each can hold, and how files are told apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swintormer.errors import SwintormerError
from swintormer.images import plugins
from swintormer.images.files import open_file, reason
from swintormer.images.vips import libvips


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        suffixes: file name endings, the usual one first.
        magic: possible first bytes of a file; "?" matches any byte.
        max_side: longest side in pixels that the format can hold.
        save: options of libvips' saver.
        loader: libvips' operation that reads it, which not every libvips has; for formats that are only read. What it
            lacks, Pillow's plugins may read (`plugins`).
        becomes: name in `FORMATS` of the format that its results get by default.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    max_side: int = 2**31 - 1
    sixteen_bit: bool = False
    alpha: bool = True
    save: dict[str, Any] = field(default_factory=dict)
    loader: str = ""
    becomes: str = ""


FORMATS = {
    "png": Format("PNG", (".png",), (b"\x89PNG\r\n\x1a\n",), sixteen_bit=True),
    # Deflate, because tifffile and therefore scikit-image need another package to read LZW. It compresses 16 megapixels
    # of 16-bit RGB from 91 to 54 MB in 4.2 s, LZW to 64 MB in 2.6 s.
    "tiff": Format(
        "TIFF",
        (".tif", ".tiff"),
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        sixteen_bit=True,
        save={"compression": "deflate", "predictor": "horizontal"},
    ),
    # Full chroma resolution and high quality, to preserve the restored detail; a JPEG that is read keeps its own.
    "jpeg": Format(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        (b"\xff\xd8\xff",),
        max_side=65500,  # JPEG_MAX_DIMENSION of libjpeg
        alpha=False,
        save={"Q": 95, "subsample_mode": "off", "optimize_coding": True},
    ),
    "webp": Format(
        "WebP",
        (".webp",),
        (b"RIFF????WEBP",),
        max_side=16383,  # WEBP_MAX_DIMENSION of libwebp
        save={"Q": 95, "smart_subsample": True},
    ),
}
SUFFIXES = {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}
# Formats that are read where the installed libvips or a plugin of Pillow can, and not written.
READ_ONLY = {
    "avif": Format("AVIF", (".avif",), (b"????ftypavif", b"????ftypavis"), loader="heifload_source", becomes="jpeg"),
    "heic": Format(
        "HEIC",
        (".heic", ".heif", ".hif"),
        (b"????ftyphei", b"????ftyphev", b"????ftypmif1", b"????ftypmsf1"),
        loader="",  # that of most libvips reads AVIF alone, which only decoding tells
        becomes="jpeg",
    ),
    "jxl": Format("JPEG XL", (".jxl",), (b"\xff\x0a", b"\0\0\0\x0cJXL "), loader="jxlload_source", becomes="png"),
    "bmp": Format("BMP", (".bmp", ".dib"), (b"BM",), loader="magickload_source", becomes="png"),
}
_READ_ONLY_SUFFIXES = {suffix: name for name, form in READ_ONLY.items() for suffix in form.suffixes}
# Endings of other pictures, which are named instead of passed over in silence.
_FOREIGN_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".gif", ".jp2", ".nef", ".orf", ".pdf", ".psd", ".raf", ".rw2",
                     ".svg"}  # fmt: skip
FORMAT_NAMES = "PNG, TIFF, JPEG or WebP"


def format_of(path: Path) -> Format:
    """The format for a file name, by its ending. Raises SwintormerError for other endings."""
    if path.suffix.lower() not in SUFFIXES:
        raise SwintormerError(f"Cannot write {path}: its name must end in one of {', '.join(SUFFIXES)}.")
    return FORMATS[SUFFIXES[path.suffix.lower()]]


def reads(path: Path) -> bool | None:
    """Whether files of that name are read, by its ending, some with packages that may be missing; None if it is no
    ending of a picture."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in _READ_ONLY_SUFFIXES:
        return True
    return False if suffix in _FOREIGN_SUFFIXES else None


def has_loader(form: Format) -> bool:
    """Whether the installed libvips reads a format of `READ_ONLY`."""
    return bool(form.loader and libvips().type_find("VipsOperation", form.loader))


def detect_format(path: Path) -> str:
    """The name in `FORMATS` or `READ_ONLY` of a file's format, by its first bytes, not by its name.

    Raises:
        SwintormerError: no such file, not readable, no regular file, empty, in none of the formats, or in one that the
            installed libvips does not read.
    """
    with open_file(path) as file:
        try:
            head = file.read(12)
        except OSError as error:
            raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    if not head:
        raise SwintormerError(f"{path} is empty (0 bytes): copy it again from where it came.")
    for name, form in (FORMATS | READ_ONLY).items():
        if any(_matches(head, magic) for magic in form.magic):
            if name in READ_ONLY and not (has_loader(form) or plugins.is_installed(name)):
                package = plugins.PACKAGES.get(name, ("", ""))[1]
                need = f"needs a package (pip install {package})" if package else f"needs a libvips with {form.loader}"
                raise SwintormerError(
                    f"{path} is in the format {form.name}, which {need}: install it, or convert the picture to "
                    f"{FORMAT_NAMES} first."
                )
            return name
    named = " although its name says so" if path.suffix.lower() in SUFFIXES else ""
    raise SwintormerError(f"{path} is not a picture in {FORMAT_NAMES}{named}: convert it to one of these first.")


def result_format(path: Path) -> str:
    """The name in `FORMATS` of the format that the result of a file gets by default, by its content.

    Raises:
        SwintormerError: as `detect_format`.
    """
    found = detect_format(path)
    return READ_ONLY[found].becomes if found in READ_ONLY else found


def result_ending(path: Path, form: str | None = None) -> str:
    """Ending of the name of a file's result: as spelled in the source (.JPG stays .JPG), if that can be written.

    Args:
        form: name in `FORMATS` of another format to write.

    Raises:
        SwintormerError: as `detect_format`, where the name does not tell the format.
    """
    if form is None and path.suffix.lower() in SUFFIXES:
        return path.suffix
    return FORMATS[form or result_format(path)].suffixes[0]


def _matches(head: bytes, magic: bytes) -> bool:
    return len(head) >= len(magic) and all(m in (b, ord("?")) for b, m in zip(head, magic, strict=False))
