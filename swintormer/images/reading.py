"""Read photographs; bit depth, alpha, colour profile, metadata and resolution are kept.

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
import re
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swintormer.errors import SwintormerError
from swintormer.images import parts, plugins
from swintormer.images.files import open_file, reason
from swintormer.images.formats import FORMAT_NAMES, READ_ONLY, detect_format, has_loader
from swintormer.images.kinds import check_header
from swintormer.images.metadata import Extra, add_extra, read_extra
from swintormer.images.picture import INTERPRETATIONS, MM_PER_INCH, UNKNOWN_RESOLUTION, Header, Image, Samples, Stored
from swintormer.images.tiff_exif import BLOCK_HEADER, read_exif, without_thumbnail
from swintormer.images.vips import detail, libvips
from swintormer.signals import interruptible

_READABLE = {*INTERPRETATIONS.values(), "rgb"}
_SAMPLE_KINDS = {"float": "floating-point", "double": "floating-point", "short": "signed 16-bit",
                 "uint": "32-bit", "int": "signed 32-bit", "char": "signed 8-bit", "complex": "complex",
                 "dpcomplex": "complex"}  # fmt: skip
_CARRIED = {"icc-profile-data", "xmp-data", "orientation", "resolution-unit", "image-description", "exif-data"}
_CARRIED_PREFIXES = ("exif-ifd0-", "exif-ifd2-", "exif-ifd3-")  # exif-ifd1 is the old thumbnail
MAX_PIXELS = 1_000_000_000
"""Width times height, by default: twice the largest sensors, ten times what most cameras have; 3 GB of samples."""
_PATIENCE = 0.5  # seconds that a decoder gets to end after an interrupt; those of whole pictures do not look


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
    vips = libvips()
    damage = ""
    try:
        if form in READ_ONLY and not has_loader(READ_ONLY[form]):
            return _through_pillow(path, form, max_pixels)
        with open_file(path) as file:
            _check_parts(path, form, file)
            try:
                image, samples = _decode(path, "warning", max_pixels)
            except vips.Error as warning:
                if form == "tiff" and not detail(warning):  # libtiff warned of a tag and not of samples
                    image, samples = _decode_checked(path, max_pixels)
                elif form != "jpeg" or "out of memory" in str(warning):
                    raise
                else:
                    image, samples = _decode(path, "error", max_pixels)
                    damage = f"{path} is damaged ({detail(warning)}): look at its result, parts of it may be wrong."
            if form == "tiff" and not interruptible(partial(parts.tiff_is_whole, file), lambda: None, 0):
                raise vips.Error("", "wrong checksum")  # libvips need not reach it
            if form in READ_ONLY:
                _fill_low_bits(samples, image)
            stored = _stored(form, file, image)
            notes = _reading_notes(path, file, image, form)
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    except (vips.Error, MemoryError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise SwintormerError(f"{path} does not fit into memory: close other programs or crop it first.") from error
        found = f" ({detail(error)})" if detail(error) else ""
        if form in READ_ONLY:
            raise SwintormerError(
                f"{path} is damaged or a kind of {READ_ONLY[form].name} that the installed libvips does not "
                f"read{found}: convert it to {FORMAT_NAMES} first."
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
    notes = (damage, *notes, *misfit) if damage else notes + misfit
    return Image(path, samples, bool(image.hasalpha()), header, notes, damage, stored, extra)


def _through_pillow(path: Path, form: str, max_pixels: int) -> Image:
    """A picture of a format that libvips does not read. Raises also OSError and MemoryError."""
    found = plugins.read(path, form, lambda width, height: _check_size(path, width, height, max_pixels))
    blob = libvips().GValue.blob_type
    kept = (("icc-profile-data", found.profile), ("xmp-data", found.xmp))
    fields = _parse_exif(found.exif) + tuple((blob, name, value) for name, value in kept if value)
    xres, yres = (float(side) / MM_PER_INCH for side in found.dpi)
    channels = found.samples.shape[2]
    header, misfit = _without_misfit(path, Header(xres, yres, fields), channels - (channels in (2, 4)))
    return Image(path, found.samples, channels in (2, 4), header, found.notes + misfit)


def _decode(path: Path, fail_on: str, max_pixels: int) -> tuple[Any, Samples]:
    """The libvips image, and its samples (H, W, bands)."""
    vips = libvips()
    with open_file(path) as file:  # of its own: libvips moves its position, which Python's buffer would not know
        source = vips.Source.new_from_descriptor(file.fileno())  # libvips does not accept every file name
        image = vips.Image.new_from_source(source, "", access="sequential", fail_on=fail_on)
        _check_size(path, image.width, image.height, max_pixels)
        _check_kind(path, image)
        samples = interruptible(image.numpy, lambda: image.set_kill(True), _PATIENCE)
    return image, np.asarray(samples).reshape(image.height, image.width, image.bands)


def _decode_checked(path: Path, max_pixels: int) -> tuple[Any, Samples]:
    """As `_decode`; raises an error also for what libvips says of a tile and passes over."""
    from pyvips import Error, ffi, vips_lib

    vips_lib.vips_error_clear()
    decoded = _decode(path, "error", max_pixels)
    if said := ffi.string(vips_lib.vips_error_buffer()).decode("utf-8", "replace").strip():
        raise Error("unable to read", said)
    return decoded


def _check_parts(path: Path, form: str, file: BinaryIO) -> None:
    """Raise an error if the file holds several pictures, or is cut short where libvips does not notice."""
    if form == "png":
        count = parts.png_frames(file)
        if not any(name == b"IEND" for name, _ in parts.png_chunks(file)):
            raise libvips().Error("", "end missing")  # libvips stops at the last sample, but EXIF and texts may follow
    elif form == "tiff":
        reduced = parts.tiff_pages(file)
        if not reduced:
            raise libvips().Error("", "unreadable directory")
        if not parts.tiff_samples_agree(file):  # libtiff believes the number of samples, and only warns
            raise libvips().Error("", "fewer channels than have a number of bits")
        count = reduced.count(False) or len(reduced)
        if reduced[0] and count < len(reduced):  # libvips would take the copy
            raise SwintormerError(
                f"{path} begins with a small copy of its picture: save the picture alone as a file of its own first."
            )
    else:
        return
    if count > 1:
        raise SwintormerError(f"{path} holds {count} pages or frames: save each as a file of its own first.")


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
    vips = libvips()
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


def _reading_notes(path: Path, file: BinaryIO, image: Any, form: str) -> tuple[str, ...]:
    fields, notes = set(image.get_fields()), []
    bits = image.get("bits-per-sample") if "bits-per-sample" in fields else 8
    kind = "RGB" if image.bands > 2 else "gray"
    if "palette" in fields or (form == "tiff" and parts.tiff_has_palette(file)):
        notes.append(f"{path} has a palette, which cannot hold restored colours: it is written as {kind}.")
    elif bits < 8:
        notes.append(f"{path} has {bits} {'bit' if bits == 1 else 'bits'} per sample: it is written with 8.")
    if form == "tiff" and image.hasalpha() and parts.tiff_has_associated_alpha(file):
        notes.append(f"{path} has colours multiplied by its transparency: they are written without.")
    if form == "jpeg" and parts.jpeg_has_others(file):
        notes.append(f"{path} holds further pictures, such as a second view or a gain map: only the first is written.")
    if form in ("heic", "avif") and parts.heif_has_gain_map(file):
        notes.append(f"{path} holds a gain map for bright screens: only the picture itself is written.")
    if form == "jpeg" and parts.jpeg_has_video(file):
        notes.append(f"{path} holds a short video, too: only the picture is written.")
    if form == "png" and "icc-profile-data" not in fields and any(n == b"iCCP" for n, _ in parts.png_chunks(file)):
        notes.append(f"{path} has a colour profile that is damaged or for other colours: the profile is left out.")
    return tuple(notes)


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
    vips = libvips()
    pixel = io.BytesIO(vips.Image.black(1, 1).write_to_buffer(".png", keep="none"))
    add_extra(pixel, "png", Extra(chunks=(b"eXIf" + block.removeprefix(BLOCK_HEADER),)))
    image = vips.Image.new_from_buffer(pixel.getvalue(), "")
    return tuple(entry for entry in _carried_fields(image) if entry[1].startswith("exif-"))


def _resolution(image: Any) -> tuple[float, float]:
    """Horizontal and vertical, in pixels per mm. libvips leaves out that of EXIF in WebP."""
    fields = set(image.get_fields())
    names = ("exif-ifd0-XResolution", "exif-ifd0-YResolution", "exif-ifd0-ResolutionUnit")
    known = image.xres != UNKNOWN_RESOLUTION or image.yres != UNKNOWN_RESOLUTION
    if known or not fields.issuperset(names):
        return image.xres, image.yres
    unit = {"2": MM_PER_INCH, "3": 10}.get(image.get(names[2])[:1])  # the number comes first, then what it means
    numbers = [re.match(r"(\d+)/([1-9]\d*)", image.get(name)) for name in names[:2]]
    xres, yres = (int(found[1]) / int(found[2]) if found else 0 for found in numbers)
    return (xres / unit, yres / unit) if unit and xres and yres else (image.xres, image.yres)
