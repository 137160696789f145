"""Metadata that libvips loses between formats: IPTC, the resources of Photoshop, texts of PNG, comments of JPEG.

| | JPEG | TIFF | PNG | WebP |
|---|---|---|---|---|
| IPTC | in the resources | tag 33723 | in the resources | no place |
| resources | segments APP13 | tag 34377 | text "Raw profile type iptc" | no place |
| texts | "Comment" as segments COM | no place | tEXt, zTXt, iTXt | no place |

The places: IPTC IIM 4.2; Adobe's Photoshop file format specification, "Image resources"; XMP specification part 3; PNG
third edition, section 11.3; the text of PNG is a custom of ImageMagick, which ExifTool and Exiv2 read as well. What has
no place in a format is named by `lost`.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from swintormer.images.files import some_names
from swintormer.images.parts import jpeg_segments, png_chunks
from swintormer.images.tiff import Entry, read_first

IPTC_TAG, RESOURCES_TAG = 33723, 34377
COMMENT = "Comment"

_SEGMENT = 65533  # bytes that a segment of JPEG can hold
_XMP_SEGMENT = _SEGMENT - 29  # behind the name of the segment
_APP1, _APP13, _COM = 0xE1, 0xED, 0xFE
_PHOTOSHOP = b"Photoshop 3.0\0"
_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"

_IPTC_RESOURCE = 0x0404
# Small pictures of the state before restoring, and the digest of the IPTC.
_STALE_RESOURCES = {0x0409, 0x040C, 0x0425}

_AFTER_IHDR = 33
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
# How colours are meant; an ICC profile, which libvips carries, takes precedence over all but cICP.
_COLOUR_CHUNKS = {b"cICP", b"gAMA", b"cHRM", b"sRGB"}
_GAMMA_OF_SRGB = 45455  # the value of gAMA that says what files without it mean
_MOST_TEXT = 2**26  # bytes of an unpacked text; more is an attack on the memory
_XMP_KEYWORD = "XML:com.adobe.xmp"  # read by libvips
_RAW_PROFILE = "Raw profile type "
_BLOCK = 2**24  # bytes that are moved at once


@dataclass(frozen=True)
class Extra:
    """What a file says beside its samples and what libvips carries.

    Attributes:
        iptc: datasets of IPTC IIM, one after the other.
        resources: of Photoshop, each beginning with "8BIM", without IPTC and thumbnails.
        texts: (keyword, text).
        chunks: name and content of the texts and the colour chunks of a PNG file, as they are stored.
        exif: a block that libvips does not find, of older PNG files.
        unread: names of what is in the file and is not read.
    """

    iptc: bytes = b""
    resources: bytes = b""
    texts: tuple[tuple[str, str], ...] = ()
    chunks: tuple[bytes, ...] = ()
    exif: bytes = b""
    unread: tuple[str, ...] = ()


NOTHING = Extra()


def read_extra(path: Path, form: str) -> Extra:
    """The metadata of a file in the format `form` of `formats.FORMATS`; of a damaged file what can be read of it."""
    readers = {"jpeg": _read_jpeg, "tiff": _read_tiff, "png": _read_png}
    if form not in readers:
        return NOTHING
    try:
        with path.open("rb") as file:
            return readers[form](file)
    except (OSError, struct.error, ValueError):
        return NOTHING  # the picture itself may still be sound


def lost(extra: Extra, form: str, exif_bytes: int = 0, xmp_bytes: int = 0) -> list[str]:
    """Names of what a file in the format `form` will not hold; empty if it will hold everything."""
    names = list(extra.unread)
    if form == "webp":
        names += ["the IPTC data"] if extra.iptc else []
        names += ["the data of Photoshop"] if extra.resources else []
    if form != "tiff" and exif_bytes > _SEGMENT:
        names.append("the EXIF data beyond 64 KB")  # libvips writes no more, to any of them
    if form == "jpeg" and xmp_bytes > _XMP_SEGMENT:
        names.append("the XMP data, which exceed 64 KB,")
    if form != "png":
        kept = {COMMENT} if form == "jpeg" else set()
        words = list(dict.fromkeys(word for word, text in extra.texts if word not in kept or _too_long(text)))
        names += [f"the texts ({some_names(words)})"] if words else []
        names += ["the colour space that is given without a profile"] if _odd_colours(extra.chunks) else []
    return names


def add_extra(file: BinaryIO, form: str, extra: Extra) -> None:
    """Add the metadata to a complete PNG or JPEG file, opened for reading and writing; see `tiff_entries` for TIFF.

    Raises:
        OSError: reading or writing fails.
    """
    if form == "jpeg":
        file.seek(0)
        head = file.read(6)
        after_jfif = 4 + int.from_bytes(head[4:6], "big") if head[2:4] == b"\xff\xe0" else 2
        _insert(file, after_jfif, _jpeg_segments(extra))
    elif form == "png":
        _insert(file, _AFTER_IHDR, b"".join(_as_chunk(chunk) for chunk in _png_chunks(extra)))


def tiff_entries(extra: Extra) -> dict[int, Entry]:
    """What a TIFF file holds of the metadata, by tag."""
    values = {IPTC_TAG: extra.iptc, RESOURCES_TAG: extra.resources and _all_resources(extra)}
    kinds = {IPTC_TAG: 7, RESOURCES_TAG: 1}  # UNDEFINED and BYTE
    return {tag: Entry(kinds[tag], len(value), value) for tag, value in values.items() if value}


def _insert(file: BinaryIO, at: int, data: bytes) -> None:
    """Insert bytes; what follows is moved in blocks, so that no copy of the file is held in memory."""
    end = file.seek(0, os.SEEK_END)
    while data and end > at:  # from the end: nothing is overwritten before it is moved
        start = max(at, end - _BLOCK)
        file.seek(start)
        block = file.read(end - start)
        file.seek(start + len(data))
        file.write(block)
        end = start
    file.seek(at)
    file.write(data)


# IPTC and the resources of Photoshop
def _datasets(data: bytes) -> bytes:
    """IPTC without the zeros that follow it in fields of four-byte numbers; b"" if it is none."""
    at = 0
    while at + 5 <= len(data) and data[at] == 0x1C:
        (length,) = struct.unpack_from(">H", data, at + 3)
        at += 5
        if length & 0x8000:  # the length of the length
            width = length & 0x7FFF
            length = int.from_bytes(data[at : at + width], "big")
            at += width
        at += length
    if at == 0:
        return b""
    return data[:at] if not data[at:].strip(b"\0") else data


def _split(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, content and the whole of each resource."""
    at = 0
    while at + 12 <= len(data) and data[at : at + 4].isalnum():
        (number,) = struct.unpack_from(">H", data, at + 4)
        size_at = at + 6 + (data[at + 6] + 2) // 2 * 2  # a name with its length, filled to an even number of bytes
        (size,) = struct.unpack_from(">I", data, size_at)
        end = size_at + 4 + size
        if end > len(data):
            return  # damaged
        yield number, data[size_at + 4 : end], data[at:end] + b"\0" * (size % 2)
        at = end + size % 2


def _from_resources(data: bytes, iptc: bytes = b"") -> tuple[bytes, bytes]:
    """IPTC, by default that of the resources, and the other resources that still hold."""
    kept = b""
    for number, content, whole in _split(data):
        if number == _IPTC_RESOURCE:
            iptc = iptc or _datasets(content)
        elif number not in _STALE_RESOURCES:
            kept += whole
    return iptc, kept


def _all_resources(extra: Extra) -> bytes:
    if not extra.iptc:
        return extra.resources
    head = b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(extra.iptc))
    return head + extra.iptc + b"\0" * (len(extra.iptc) % 2) + extra.resources


# TIFF
def _read_tiff(file: BinaryIO) -> Extra:
    first = read_first(file, {IPTC_TAG, RESOURCES_TAG})
    iptc = first.get(IPTC_TAG, b"")
    if iptc[3:4] == b"\x1c" and iptc[:1] != b"\x1c":  # written as numbers of four bytes in the other order
        iptc = b"".join(iptc[i : i + 4][::-1] for i in range(0, len(iptc), 4))
    return Extra(*_from_resources(first.get(RESOURCES_TAG, b""), _datasets(iptc)))


# JPEG
def _read_jpeg(file: BinaryIO) -> Extra:
    resources, texts, unread = b"", [], set()
    for marker, content in jpeg_segments(file):
        if marker == _APP13 and content.startswith(_PHOTOSHOP):
            resources += content[len(_PHOTOSHOP) :]
        elif marker == _COM and content.strip(b"\0"):
            texts.append((COMMENT, _text(content.rstrip(b"\0"))))
        elif marker == _APP1 and content.startswith(_MORE_XMP):
            unread.add("the XMP data beyond 64 KB")
    return Extra(*_from_resources(resources), tuple(texts), unread=tuple(unread))


def _text(content: bytes) -> str:
    """A comment of JPEG has no encoding; most are ASCII."""
    try:
        return content.decode().replace("\0", "")
    except UnicodeDecodeError:
        return content.decode("latin-1").replace("\0", "")


def _too_long(text: str) -> bool:
    return len(text.encode("utf-8", "replace")) > _SEGMENT


def _jpeg_segments(extra: Extra) -> bytes:
    resources, size = _all_resources(extra), _SEGMENT - len(_PHOTOSHOP)
    parts = [(_APP13, _PHOTOSHOP + resources[at : at + size]) for at in range(0, len(resources), size)]
    comments = [text for keyword, text in extra.texts if keyword == COMMENT and not _too_long(text)]
    parts += [(_COM, text.encode("utf-8", "replace")) for text in comments]
    return b"".join(struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in parts)


# PNG
def _read_png(file: BinaryIO) -> Extra:
    resources, exif = b"", b""
    texts: list[tuple[str, str]] = []
    chunks: list[bytes] = []
    for name, content in png_chunks(file, _TEXT_CHUNKS | _COLOUR_CHUNKS):
        if name not in _TEXT_CHUNKS | _COLOUR_CHUNKS:
            continue
        if name in _COLOUR_CHUNKS:
            chunks.append(name + content)
            continue
        keyword, text = _png_text(name, content)
        kind = keyword.removeprefix(_RAW_PROFILE).lower() if keyword.startswith(_RAW_PROFILE) else ""
        if kind in ("iptc", "8bim"):
            resources = resources or _profile(text)
        elif kind in ("exif", "app1") and _profile(text).startswith(b"Exif\0\0"):
            exif = _profile(text)
        elif keyword != _XMP_KEYWORD:
            texts.append((keyword, text))
            chunks.append(name + content)
    iptc, resources = (_datasets(resources), b"") if resources[:1] == b"\x1c" else _from_resources(resources)
    return Extra(iptc, resources, tuple(texts), tuple(chunks), exif)


def _png_text(name: bytes, content: bytes) -> tuple[str, str]:
    keyword, _, rest = content.partition(b"\0")
    packed, encoding = name == b"zTXt", "latin-1"
    if name == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].split(b"\0", 2)[-1]  # behind the language and the keyword in that language
    elif packed:
        rest = rest[1:]
    if packed:
        unpacker = zlib.decompressobj()
        try:
            rest = unpacker.decompress(rest, _MOST_TEXT)
        except zlib.error:
            rest = b""
    return keyword.decode("latin-1"), rest.decode(encoding, "replace")


def _profile(text: str) -> bytes:
    """The bytes of a "Raw profile": a name and a length, each in a line, and hexadecimal digits."""
    words = text.split()
    try:
        return bytes.fromhex("".join(words[2:]))[: int(words[1])]
    except (ValueError, IndexError):
        return b""


def _png_chunks(extra: Extra) -> Iterator[bytes]:
    """Name and content of every chunk."""
    yield from extra.chunks
    if not extra.chunks:  # from another format
        for keyword, text in extra.texts:
            word = keyword.encode("latin-1", "replace")
            try:
                yield b"tEXt" + word + b"\0" + text.encode("latin-1")
            except UnicodeEncodeError:
                yield b"iTXt" + word + b"\0\0\0\0\0" + text.encode("utf-8", "replace")
    if resources := _all_resources(extra):
        digits = resources.hex()
        lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
        profile = f"\niptc\n{len(resources):8d}\n{lines}\n".encode()
        yield b"zTXt" + f"{_RAW_PROFILE}iptc".encode() + b"\0\0" + zlib.compress(profile)


def _as_chunk(chunk: bytes) -> bytes:
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _odd_colours(chunks: tuple[bytes, ...]) -> bool:
    """Whether PNG chunks say that the colours are others than sRGB, which is what files without them mean."""
    content = {chunk[:4]: chunk[4:] for chunk in chunks}
    if b"cICP" in content:
        return content[b"cICP"][:2] != b"\x01\x0d"  # primaries of Rec. 709, curve of sRGB
    if b"sRGB" in content or b"gAMA" not in content:
        return False
    return abs(int.from_bytes(content[b"gAMA"], "big") - _GAMMA_OF_SRGB) > _GAMMA_OF_SRGB // 50
