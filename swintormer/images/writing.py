"""Write pictures with what they had: alpha, colour profile, metadata, resolution; and say beforehand what changes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swintormer.errors import SwintormerError
from swintormer.images.files import replacing
from swintormer.images.formats import FORMATS, SUFFIXES, Format, detect_format, format_of
from swintormer.images.metadata import NOTHING, Extra, add_extra, lost, tiff_entries
from swintormer.images.picture import Image, Samples, Stored, to_eight_bit, with_header, wrap
from swintormer.images.tiff_exif import append_exif
from swintormer.images.vips import detail, libvips
from swintormer.signals import interruptible

LEAST_QUALITY = 75  # below, JPEG's blocks would spoil what was restored
_BIG_TIFF = 3_500_000_000  # bytes of samples; a plain TIFF is limited to 4 GiB, and deflate may enlarge noise


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
    if form.name == "WebP" and source.pixels.shape[2] == 1 and source.header.get("icc-profile-data"):
        notes.append(f"{target.name} is without the colour profile of {source.path}: WebP holds none for gray.")
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


def write_unchanged(target: Path, source: Image, saving: Saving = Saving()) -> bool:
    """Give the target the picture as it came; returns whether byte for byte: in the same format, as it is stored.

    Raises:
        SwintormerError: as `write_image`.
    """
    if FORMATS.get(detect_format(source.path)) is not format_of(target) or saving != Saving():
        write_image(target, source.pixels, source, saving)
        return False
    with source.path.open("rb") as original, replacing(target) as file:
        shutil.copyfileobj(original, file)
    return True


def _options(form: Format, stored: Stored, saving: Saving) -> dict[str, Any]:
    """Of libvips' saver, where they differ from those of the format."""
    options: dict[str, Any] = {}
    if form.name == "JPEG" and stored.quality is not None:
        options = {"Q": max(stored.quality, LEAST_QUALITY), "subsample_mode": "on" if stored.halved_chroma else "off"}
    if form.name == "WebP" and (saving.lossless or (stored.lossless and saving == Saving())):
        options = {"lossless": True, "exact": True}  # exact: also where nothing is seen
    if saving.quality is not None and form.name in ("JPEG", "WebP"):
        options |= {"Q": saving.quality}
    return options


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
    form, vips = format_of(target), libvips()
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
        raise SwintormerError(f"Cannot write {target}: {detail(error)}.") from error
