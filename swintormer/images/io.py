"""Read and write photographs; bit depth, alpha, colour profile, metadata and resolution are kept.

This uses libvips (pyvips). Of the libraries tried on a 100-megapixel 16-bit RGB PNG and TIFF with ICC profile and
orientation, only libvips kept 16 bits, profile and tags in every format, and it held a single copy of the samples: peak
655 MiB for 572 MiB of samples. OpenCV 5.0 (1198 MiB) and imagecodecs (1189 MiB) returned no profile and no tags, Pillow
13 reduced 16-bit RGB to 8 bits, and tifffile reads TIFF only. libvips also rejected each of 960 truncated files (PNG,
JPEG, TIFF, WebP). What it does not support, EXIF in TIFF, IPTC between formats and texts, is in `tiff_exif` and
`metadata`.

The orientation tag is kept and not applied to the pixels, so viewers show the picture as before.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from swintormer.errors import SwintormerError
from swintormer.images import parts, plugins
from swintormer.images.files import open_file, reason, replacing
from swintormer.images.kinds import check_header
from swintormer.images.metadata import NOTHING, Extra, add_extra, lost, read_extra, tiff_entries
from swintormer.images.tiff_exif import (
    BLOCK_HEADER,
    append_exif,
    deflate_is_whole,
    has_associated_alpha,
    pictures,
    read_exif,
    without_thumbnail,
)
from swintormer.signals import interruptible

Samples = NDArray[np.uint8] | NDArray[np.uint16]


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
LEAST_QUALITY = 75  # below, JPEG's blocks would spoil what was restored
# Formats that are read where the installed libvips can, and not written.
READ_ONLY = {
    "avif": Format("AVIF", (".avif",), (b"????ftypavif",), loader="heifload_source", becomes="jpeg"),
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
_FORMAT_NAMES = "PNG, TIFF, JPEG or WebP"

_INTERPRETATIONS = {(1, 8): "b-w", (1, 16): "grey16", (3, 8): "srgb", (3, 16): "rgb16"}
_READABLE = {*_INTERPRETATIONS.values(), "rgb"}
_SAMPLE_KINDS = {"float": "floating-point", "double": "floating-point", "short": "signed 16-bit",
                 "uint": "32-bit", "int": "signed 32-bit", "char": "signed 8-bit", "complex": "complex",
                 "dpcomplex": "complex"}  # fmt: skip

_CARRIED = {"icc-profile-data", "xmp-data", "orientation", "resolution-unit", "image-description", "exif-data"}
_CARRIED_PREFIXES = ("exif-ifd0-", "exif-ifd2-", "exif-ifd3-")  # exif-ifd1 is the old thumbnail
MAX_PIXELS = 1_000_000_000
"""Width times height, by default: twice the largest sensors, ten times what most cameras have; 3 GB of samples."""
_PATIENCE = 0.5  # seconds that a decoder gets to end after an interrupt; those of whole pictures do not look
_UNKNOWN_RESOLUTION = 1.0  # pixels per mm; libvips reports this for files without resolution
_MM_PER_INCH = 25.4
_72_DPI = 72 / _MM_PER_INCH  # what viewers assume without a resolution
_BIG_TIFF = 3_500_000_000  # bytes of samples; a plain TIFF is limited to 4 GiB, and deflate may enlarge noise


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
        notes: sentences for the user about what reading changed; mostly empty.
        stored: how the file stores them.
        extra: metadata that libvips does not carry.
    """

    path: Path
    samples: Samples
    has_alpha: bool
    header: Header
    notes: tuple[str, ...] = ()
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


def format_of(path: Path) -> Format:
    """The format for a file name, by its ending. Raises SwintormerError for other endings."""
    if path.suffix.lower() not in SUFFIXES:
        raise SwintormerError(f"Cannot write {path}: its name must end in one of {', '.join(SUFFIXES)}.")
    return FORMATS[SUFFIXES[path.suffix.lower()]]


def reads(path: Path) -> bool | None:
    """Whether files of that name are read, by its ending, some with packages that may be missing; None if that is not
    one of a picture."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in _READ_ONLY_SUFFIXES:
        return True
    return False if suffix in _FOREIGN_SUFFIXES else None


def _has_loader(form: Format) -> bool:
    return bool(form.loader and _vips().type_find("VipsOperation", form.loader))


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
            if name in READ_ONLY and not (_has_loader(form) or plugins.is_installed(name)):
                package = plugins.PACKAGES.get(name, ("", ""))[1]
                need = f"needs a package (pip install {package})" if package else f"needs a libvips with {form.loader}"
                raise SwintormerError(
                    f"{path} is in the format {form.name}, which {need}: install it, or convert the picture to "
                    f"{_FORMAT_NAMES} first."
                )
            return name
    named = " although its name says so" if path.suffix.lower() in SUFFIXES else ""
    raise SwintormerError(f"{path} is not a picture in {_FORMAT_NAMES}{named}: convert it to one of these first.")


def _matches(head: bytes, magic: bytes) -> bool:
    return len(head) >= len(magic) and all(m in (b, ord("?")) for b, m in zip(head, magic, strict=False))


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a PNG, TIFF, JPEG or WebP file. Needs memory for its samples and a few rows.

    A file of which the decoder gives only a part is an error. JPEG alone has no way to tell: where its decoder warns,
    the picture is read with a note.

    Args:
        max_pixels: width times height; a picture that has more by its header is not decoded.

    Raises:
        KeyboardInterrupt: a signal arrived meanwhile; see `signals.interruptible`.
        SwintormerError: the file is missing, unreadable, empty, damaged or truncated; in another format; or cannot be
            written back as it was: CMYK or Lab, floating-point or 32-bit samples, several pages or frames; or has too
            many pixels.
    """
    path = Path(path)
    form = detect_format(path)
    check_header(path, form)
    vips = _vips()
    notes: tuple[str, ...] = ()
    try:
        if form in READ_ONLY and not _has_loader(READ_ONLY[form]):
            return _through_pillow(path, form, max_pixels)
        with open_file(path) as file:
            _check_parts(path, form, file)
            try:
                image, samples = _decode(path, file, "warning", max_pixels)
            except vips.Error as warning:
                if form == "tiff" and not _detail(warning):  # libtiff warned of a tag and not of samples
                    image, samples = _decode_checked(path, file, max_pixels)
                elif form == "jpeg" and "out of memory" not in str(warning):
                    image, samples = _decode(path, file, "error", max_pixels)
                    notes = (f"{path} is damaged ({_detail(warning)}): look at its result, parts of it may be wrong.",)
                else:
                    raise
            if form in READ_ONLY:
                _fill_low_bits(samples, image)
            stored = _stored(form, file, image)
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    except (vips.Error, MemoryError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise SwintormerError(f"{path} does not fit into memory: close other programs or crop it first.") from error
        found = f" ({_detail(error)})" if _detail(error) else ""
        if form in READ_ONLY:
            raise SwintormerError(
                f"{path} is damaged or a kind of {READ_ONLY[form].name} that the installed libvips does not "
                f"read{found}: convert it to {_FORMAT_NAMES} first."
            ) from error
        raise SwintormerError(
            f"{path} is damaged, cut short or of a rare kind{found}: copy it again from where it came, or convert it."
        ) from error
    extra = read_extra(path, form)
    fields = _carried_fields(image)
    if not any(name == "exif-data" for _, name, _ in fields):
        fields += _parse_exif(read_exif(path) if form == "tiff" else extra.exif)
    header = Header(*_resolution(image), fields)
    header, misfit = _without_misfit(path, header, samples.shape[2] - bool(image.hasalpha()))
    notes += _reading_notes(path, image, form) + misfit
    return Image(path, samples, bool(image.hasalpha()), header, notes, stored, extra)


def _through_pillow(path: Path, form: str, max_pixels: int) -> Image:
    """A picture of a format that libvips does not read. Raises also OSError and MemoryError."""
    found = plugins.read(path, form, lambda width, height: _check_size(path, width, height, max_pixels))
    blob = _vips().GValue.blob_type
    kept = (("icc-profile-data", found.profile), ("xmp-data", found.xmp))
    fields = _parse_exif(found.exif) + tuple((blob, name, value) for name, value in kept if value)
    xres, yres = (float(side) / _MM_PER_INCH for side in found.dpi)
    channels = found.samples.shape[2]
    header, misfit = _without_misfit(path, Header(xres, yres, fields), channels - (channels in (2, 4)))
    return Image(path, found.samples, channels in (2, 4), header, found.notes + misfit)


def _decode(path: Path, file: BinaryIO, fail_on: str, max_pixels: int) -> tuple[Any, Samples]:
    """The libvips image, and its samples (H, W, bands)."""
    vips = _vips()
    file.seek(0)
    source = vips.Source.new_from_descriptor(file.fileno())  # libvips does not accept every file name
    image = vips.Image.new_from_source(source, "", access="sequential", fail_on=fail_on)
    _check_size(path, image.width, image.height, max_pixels)
    _check_kind(path, image)
    samples = interruptible(image.numpy, lambda: image.set_kill(True), _PATIENCE)
    return image, np.asarray(samples).reshape(image.height, image.width, image.bands)


def _decode_checked(path: Path, file: BinaryIO, max_pixels: int) -> tuple[Any, Samples]:
    """As `_decode`; raises an error also for what libvips says of a tile and passes over."""
    from pyvips import Error, ffi, vips_lib

    vips_lib.vips_error_clear()
    decoded = _decode(path, file, "error", max_pixels)
    if said := ffi.string(vips_lib.vips_error_buffer()).decode("utf-8", "replace").strip():
        raise Error("unable to read", said)
    return decoded


def _check_parts(path: Path, form: str, file: BinaryIO) -> None:
    """Raise an error if the file holds several pictures, or is not whole in a way that libvips does not notice.

    It stops a PNG at the last sample, but EXIF and comments may follow, and checks no checksum of TIFF.
    """
    count = parts.png_frames(file) if form == "png" else pictures(path) if form == "tiff" else 1
    if count and count > 1:
        raise SwintormerError(f"{path} holds {count} pages or frames: save each as a file of its own first.")
    if form == "png" and not any(name == b"IEND" for name, _ in parts.png_chunks(file)):
        raise _vips().Error("", "end missing")
    if form == "tiff" and not deflate_is_whole(path):
        raise _vips().Error("", "wrong checksum")


def _stored(form: str, file: BinaryIO, image: Any) -> Stored:
    if form == "jpeg":
        halved = "jpeg-chroma-subsample" in image.get_fields() and image.get("jpeg-chroma-subsample") != "4:4:4"
        return Stored(quality=parts.jpeg_quality(file), halved_chroma=halved)
    return Stored(lossless=form == "webp" and parts.webp_is_lossless(file))


def _fill_low_bits(samples: Samples, image: Any) -> None:
    """Make white white: libvips puts 10 and 12 bits of HEIC and AVIF at the upper end of 16, with zeros below."""
    bits = image.get("bits-per-sample") if "bits-per-sample" in image.get_fields() else 16
    if samples.dtype == np.uint16 and 8 < bits < 16:
        for row in samples:
            np.bitwise_or(row, row >> np.uint16(bits), out=row)


def sample_bytes(path: Path) -> int:
    """Bytes of the decoded samples without alpha, by the file's header; 0 if `read_image` will refuse it by that."""
    vips = _vips()
    try:
        with open_file(path) as file:
            source = vips.Source.new_from_descriptor(file.fileno())
            image = vips.Image.new_from_source(source, "", access="sequential")
            if image.width * image.height > MAX_PIXELS:
                return 0
            colours = image.bands - bool(image.hasalpha())
            return int(image.width * image.height * colours * (2 if image.format == "ushort" else 1))
    except (OSError, SwintormerError, vips.Error):
        return 0


def _check_size(path: Path, width: int, height: int, most: int) -> None:
    """A file of a few kilobytes may claim a picture that fills the memory, or be one."""
    if width * height > most:
        raise SwintormerError(
            f"{path} has {width}x{height} = {width * height:,} pixels, and more than {most:,} are not decoded: "
            "if it is meant to be that large, raise --max-pixels."
        )


def _check_kind(path: Path, image: Any) -> None:
    """Raise an error, before samples are decoded, if the picture cannot be restored and written back in its kind."""
    loader = image.get("vips-loader") if "vips-loader" in image.get_fields() else ""
    pages = image.get("n-pages") if "n-pages" in image.get_fields() else 1
    if pages > 1 and not loader.startswith("tiff"):  # of TIFF, some may be reduced copies (_check_parts)
        raise SwintormerError(f"{path} holds {pages} pages or frames: save each as a file of its own first.")
    if image.interpretation == "cmyk":
        raise SwintormerError(f"{path} is in CMYK, the colours of a printing press: convert it to RGB first.")
    if image.format in _SAMPLE_KINDS:
        kind = _SAMPLE_KINDS[image.format]
        raise SwintormerError(f"{path} has {kind} samples: convert it to 8 or 16 bits per channel first.")
    colours = image.bands - bool(image.hasalpha())
    if image.interpretation not in _READABLE or colours not in (1, 3):
        raise SwintormerError(
            f"{path} has {image.bands} channels of kind {image.interpretation!r}: convert it to gray or RGB first."
        )


def _reading_notes(path: Path, image: Any, form: str) -> tuple[str, ...]:
    fields, notes = set(image.get_fields()), []
    bits = image.get("bits-per-sample") if "bits-per-sample" in fields else 8
    if "palette" in fields:
        notes.append(f"{path} has a palette, which cannot hold restored colours: it is written as RGB.")
    elif bits < 8:
        notes.append(f"{path} has {bits} {'bit' if bits == 1 else 'bits'} per sample: it is written with 8.")
    if form == "tiff" and image.hasalpha() and has_associated_alpha(path):
        notes.append(f"{path} has colours multiplied by its transparency: they are written without.")
    if form == "jpeg" and _has_others(path):
        notes.append(f"{path} holds further pictures, such as a second view or a gain map: only the first is written.")
    return tuple(notes)


def _has_others(path: Path) -> bool:
    with open_file(path) as file:
        return parts.jpeg_has_others(file)


def _without_misfit(path: Path, header: Header, colours: int) -> tuple[Header, tuple[str, ...]]:
    """The metadata without a colour profile for another kind of picture, which most programs would refuse or misuse."""
    profile = header.get("icc-profile-data")
    if profile is None:
        return header, ()
    space, signature = bytes(profile[16:20]), bytes(profile[36:40])  # ICC.1:2022, section 7.2
    if signature == b"acsp" and space == (b"RGB " if colours == 3 else b"GRAY"):
        return header, ()
    kind = f"for {space.decode('ascii', 'replace').strip()}" if signature == b"acsp" else "damaged"
    what = "RGB" if colours == 3 else "gray"
    fields = tuple(entry for entry in header.fields if entry[1] != "icc-profile-data")
    note = f"{path} is {what} and its colour profile is {kind}: the profile is left out."
    return Header(header.xres, header.yres, fields), (note,)


def _carried_fields(image: Any) -> tuple[tuple[int, str, Any], ...]:
    names = [name for name in image.get_fields() if name in _CARRIED or name.startswith(_CARRIED_PREFIXES)]
    fields = [(image.get_typeof(name), name, image.get(name)) for name in names]
    return tuple((kind, name, without_thumbnail(v) if name == "exif-data" else v) for kind, name, v in fields)


def _parse_exif(block: bytes | None) -> tuple[tuple[int, str, Any], ...]:
    """An EXIF block as libvips' fields. libvips parses EXIF only in files, so the block goes into a one-pixel PNG."""
    if not block:
        return ()
    vips = _vips()
    pixel = io.BytesIO(vips.Image.black(1, 1).write_to_buffer(".png", keep="none"))
    add_extra(pixel, "png", Extra(chunks=(b"eXIf" + block.removeprefix(BLOCK_HEADER),)))
    image = vips.Image.new_from_buffer(pixel.getvalue(), "")
    return tuple(entry for entry in _carried_fields(image) if entry[1].startswith("exif-"))


def _resolution(image: Any) -> tuple[float, float]:
    """Horizontal and vertical, in pixels per mm. libvips leaves out that of EXIF in WebP."""
    fields = set(image.get_fields())
    names = ("exif-ifd0-XResolution", "exif-ifd0-YResolution", "exif-ifd0-ResolutionUnit")
    known = image.xres != _UNKNOWN_RESOLUTION or image.yres != _UNKNOWN_RESOLUTION
    if known or not fields.issuperset(names):
        return image.xres, image.yres
    unit = {"2": _MM_PER_INCH, "3": 10}.get(image.get(names[2])[:1])  # the number comes first, then what it means
    numbers = [re.match(r"(\d+)/([1-9]\d*)", image.get(name)) for name in names[:2]]
    xres, yres = (int(found[1]) / int(found[2]) if found else 0 for found in numbers)
    return (xres / unit, yres / unit) if unit and xres and yres else (image.xres, image.yres)


@dataclass(frozen=True)
class Saving:
    """How results are compressed.

    Attributes:
        quality: 1 to 100 of JPEG and lossy WebP. None keeps that of a JPEG file, but at least LEAST_QUALITY, and is 95
            for other sources.
        lossless: True for WebP without loss, which JPEG cannot be; None keeps a lossless WebP lossless.
    """

    quality: int | None = None
    lossless: bool | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise SwintormerError(f"The quality must be 1 to 100, found {self.quality}.")
        if self.quality is not None and self.lossless:
            raise SwintormerError("A lossless picture has no quality: leave one of the two out.")


def check_target(source: Image, target: Path, saving: Saving = Saving()) -> list[str]:
    """Sentences about what writing `source` to `target` will change; empty if nothing changes.

    Raises:
        SwintormerError: the format cannot hold the picture: unknown ending, too many pixels a side, alpha, or a JPEG
            that should be lossless.
    """
    form = format_of(target)
    if saving.lossless and form.name == "JPEG":
        raise SwintormerError(f"Cannot write {target} without loss: choose --format png, tiff or webp.")
    height, width = source.samples.shape[:2]
    if max(height, width) > form.max_side:
        raise SwintormerError(
            f"{source.path} is {width}x{height} and {form.name} allows at most {form.max_side} pixels a side: "
            "choose --format png or tiff."
        )
    if source.has_alpha and not form.alpha:
        raise SwintormerError(
            f"{source.path} has transparency, which {form.name} cannot hold: choose --format png, tiff or webp."
        )
    notes = list(source.notes)
    if source.bits == 16 and not form.sixteen_bit:
        notes.append(f"{source.path} has 16 bits per channel and {form.name} holds 8: {target.name} has 8.")
    sizes = (len(source.header.get(name) or b"") for name in ("exif-data", "xmp-data"))
    if names := lost(source.extra, SUFFIXES[target.suffix.lower()], *sizes):
        notes.append(f"{target.name} is without {' and '.join(names)} of {source.path}.")
    return notes


def write_image(target: str | Path, pixels: Samples, source: Image, saving: Saving = Saving()) -> None:
    """Write restored pixels with alpha and metadata of the source. On failure no incomplete file is left.

    Args:
        target: its ending decides the format. An existing file is replaced once the new one is complete.
        pixels: (H, W, C) of the source's shape and dtype; C-contiguous, else they are copied.
        source: the result of `read_image`, with alpha, profile and tags.
        saving: how they are compressed.

    Raises:
        SwintormerError: as `check_target`; or the folder or file cannot be written, or the disk is full.
        KeyboardInterrupt: a signal arrived meanwhile; see `signals.interruptible`.
        ValueError: pixels of another shape or dtype.
    """
    target = Path(target)
    check_target(source, target, saving)
    if pixels.shape != source.pixels.shape or pixels.dtype != source.samples.dtype:
        raise ValueError(
            f"expected pixels of shape {source.pixels.shape} and {source.samples.dtype}, "
            f"found {pixels.shape} and {pixels.dtype}"
        )
    image = wrap(pixels)
    if source.has_alpha:
        samples = wrap(source.samples)
        image = image.bandjoin(samples.extract_band(samples.bands - 1))
    image = with_header(image, source.header)
    options = _options(format_of(target), source.stored, saving)
    interruptible(
        lambda: save_vips(target, image, source.header.get("exif-data"), source.extra, options),
        lambda: image.set_kill(True),
    )


def _options(form: Format, stored: Stored, saving: Saving) -> dict[str, Any]:
    """Of libvips' saver, where they differ from those of the format."""
    options: dict[str, Any] = {}
    if form.name == "JPEG" and stored.quality is not None:
        options = {"Q": max(stored.quality, LEAST_QUALITY), "subsample_mode": "on" if stored.halved_chroma else "off"}
    if form.name == "WebP" and (saving.lossless or (stored.lossless and saving == Saving())):
        options = {"lossless": True}
    if saving.quality is not None and form.name in ("JPEG", "WebP"):
        options |= {"Q": saving.quality}
    return options


def wrap(samples: Samples) -> Any:
    """A libvips image over the array's own memory: (H, W, C), with or without alpha."""
    height, width, bands = samples.shape
    kind = _INTERPRETATIONS[3 if bands > 2 else 1, 8 * samples.itemsize]
    memory = np.ascontiguousarray(samples).data
    image = _vips().Image.new_from_memory(memory, width, height, bands, "uchar" if samples.itemsize == 1 else "ushort")
    return image.copy(interpretation=kind)


def with_header(image: Any, header: Header) -> Any:
    """The libvips image with a file's resolution and metadata."""
    known = header.xres != _UNKNOWN_RESOLUTION or header.yres != _UNKNOWN_RESOLUTION
    xres, yres = (header.xres, header.yres) if known else (_72_DPI, _72_DPI)
    image = image.copy(xres=xres, yres=yres)
    for kind, name, value in header.fields:
        image.set_type(kind, name, value)
    return image


def to_eight_bit(image: Any) -> Any:
    """A 16-bit libvips image with 8 bits, rounded: 65535 = 255 * 257."""
    gray = image.bands < 3
    return (image / 257).rint().cast("uchar").copy(interpretation="b-w" if gray else "srgb")


def save_vips(
    target: Path,
    image: Any,
    exif: bytes | None = None,
    extra: Extra = NOTHING,
    chosen: dict[str, Any] | None = None,
) -> None:
    """Write a libvips image to a file, in the format for its name; see `files.replacing`.

    Args:
        exif: block to add to a TIFF file; the other formats take it from the image's metadata.
        extra: metadata that libvips does not carry.
        chosen: options of libvips' saver, before those of the format.
    """
    form, vips = format_of(target), _vips()
    if image.format == "ushort" and not form.sixteen_bit:
        image = to_eight_bit(image)
    options = form.save | (chosen or {})
    if form.name == "TIFF" and image.width * image.height * image.bands * 2 > _BIG_TIFF:
        options["bigtiff"] = True
    try:
        with replacing(target) as file:
            image.write_to_target(vips.Target.new_to_descriptor(file.fileno()), form.suffixes[0], **options)
            if form.name != "TIFF":
                add_extra(file, SUFFIXES[target.suffix.lower()], extra)
            elif exif or extra != NOTHING:
                append_exif(file, exif, tiff_entries(extra))
    except vips.Error as error:
        raise SwintormerError(f"Cannot write {target}: {_detail(error)}.") from error


def _vips() -> ModuleType:
    """pyvips, imported when first needed."""
    os.environ.setdefault("VIPS_WARNING", "0")  # its warnings on unusual tags do not help users
    import pyvips

    pyvips.cache_set_max(0)  # its cache would keep pictures in memory, and the old content of replaced files
    return pyvips


def _detail(error: Exception) -> str:
    """The useful line of a libvips error: the operating system's message if there is one, else the decoder's first."""
    lines = [line.strip() for line in str(getattr(error, "detail", "")).splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("system error:", "unix error:")):
            return line.split(":", 1)[1].strip()
    first = lines[0].split(": ", 1)[-1] if lines else ""
    return "" if "known format" in first else first
