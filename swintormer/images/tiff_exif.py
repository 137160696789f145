"""EXIF in TIFF files, which libvips 8.18 neither reads nor writes: camera, lens, exposure, place, author.

An EXIF block in JPEG, PNG and WebP is itself a small TIFF file after the six bytes "Exif\\0\\0", so the same functions
handle both. New entries are appended, and the first directory is written again at the end of the file. No pixel moves:
all offsets in TIFF are absolute (TIFF 6.0, section 2; BigTIFF as in libtiff; EXIF 2.32, section 4.6).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

EXIF_DIRECTORY, GPS_DIRECTORY = 0x8769, 0x8825
INTEROPERABILITY = 0xA005  # a third directory, which is not copied, so its pointer is removed
# The tags of the first directory that describe the picture; the others describe how its samples are stored.
# Description, maker, model, software, date, artist, host, rating, copyright; Windows' title, comment, author, keywords,
# subject.
DESCRIPTIVE = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x8298, *range(0x9C9B, 0x9CA0)}
SUBFILE_TYPE, REDUCED = 0x00FE, 1  # bit of a page that is a smaller copy of another
EXTRA_SAMPLES, ASSOCIATED = 0x0152, 1
COMPRESSION, DEFLATE = 0x0103, (b"\x08\0", b"\xb2\x80")  # Adobe's number and the older one
BLOCK_HEADER = b"Exif\0\0"

# TIFF field type -> (bytes, bytes of each number in it: rationals are two 4-byte numbers)
_TYPES = {1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4), 10: (8, 4),
          11: (4, 4), 12: (8, 8), 13: (4, 4), 16: (8, 8), 17: (8, 8), 18: (8, 8)}  # fmt: skip
_PIECE = 1 << 20  # bytes that are decompressed at a time
_MAX_ENTRIES = 4096  # a real directory has tens; more is a damaged file


class Form(NamedTuple):
    """Byte order ("<" or ">") and width of a TIFF file's numbers."""

    order: str
    big: bool

    @property
    def number(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, number of items, and the value or its offset."""
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))

    @property
    def pointer(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "I"))

    @property
    def first(self) -> int:
        """Offset in the header of the pointer to the first directory."""
        return 8 if self.big else 4


_FORMS = {b"II*\0": Form("<", False), b"MM\0*": Form(">", False), b"II+\0": Form("<", True), b"MM\0+": Form(">", True)}


class Entry(NamedTuple):
    """One tag: TIFF field type, how many items, and their bytes, always little-endian."""

    type: int
    items: int
    value: bytes


Directory = dict[int, Entry]


class Tree(NamedTuple):
    """The first directory without its pointers, and the EXIF and GPS directories by the tag of their pointer."""

    form: Form
    first: Directory
    nested: dict[int, Directory]


def read_exif(path: Path) -> bytes | None:
    """The EXIF of a TIFF file as a block, or None if it has none or cannot be read."""
    try:
        with path.open("rb") as file:
            tree = _read_tree(file)
    except (OSError, struct.error, ValueError):
        return None  # the picture itself may still be sound
    first = {tag: entry for tag, entry in tree.first.items() if tag in DESCRIPTIVE}
    if not (first or tree.nested):
        return None
    form = Form("<", False)
    header = b"II*\0"
    body, at = _pack_tree(first, tree.nested, len(header) + 4, form)
    return BLOCK_HEADER + header + form.pointer.pack(at) + body


def pictures(path: Path) -> int | None:
    """How many pictures a TIFF file holds, without reduced copies of another page; None if it cannot be read."""
    count, seen = 0, set[int]()
    try:
        with path.open("rb") as file:
            form = _form(file)
            file.seek(form.first)
            (at,) = _unpack(file, form.pointer)
            while at and at not in seen:
                seen.add(at)
                kind = _read_directory(file, at, form).get(SUBFILE_TYPE)
                count += kind is None or not kind.value[0] & REDUCED
                file.seek(at)
                (entries,) = _unpack(file, form.number)
                file.seek(at + form.number.size + entries * form.entry.size)
                (at,) = _unpack(file, form.pointer)
    except (OSError, struct.error, ValueError):
        return None
    return count


def has_associated_alpha(path: Path) -> bool:
    """Whether the colours of a TIFF file are stored multiplied by its alpha."""
    try:
        with path.open("rb") as file:
            extra = _read_tree(file).first.get(EXTRA_SAMPLES)
    except (OSError, struct.error, ValueError):
        return False
    return extra is not None and extra.value[0] == ASSOCIATED


def deflate_is_whole(path: Path) -> bool:
    """Whether all strips or tiles of a TIFF file in Deflate have their checksum; True in other compressions.

    libtiff stops before the checksum, and damage may still decode, to black rows for instance. This costs a second
    decompression, 0.3 s for 24 megapixels of 8 bits.
    """
    try:
        with path.open("rb") as file:
            first = _read_tree(file).first
            if COMPRESSION not in first or first[COMPRESSION].value[:2] not in DEFLATE:
                return True
            offsets, counts = (_numbers(first[a if a in first else b]) for a, b in ((0x0111, 0x0144), (0x0117, 0x0145)))
            return all(_is_whole(file, at, count) for at, count in zip(offsets, counts, strict=True) if count)
    except (OSError, struct.error, ValueError, KeyError):
        return True  # for the decoder to judge


def _numbers(entry: Entry) -> list[int]:
    size = _TYPES[entry.type][0]
    return [int.from_bytes(entry.value[at : at + size], "little") for at in range(0, len(entry.value), size)]


def _is_whole(file: BinaryIO, at: int, count: int) -> bool:
    """Whether a zlib stream ends within its bytes, and with the right checksum."""
    stream = zlib.decompressobj()
    file.seek(at)
    try:
        while count > 0 and not stream.eof:
            piece = file.read(min(count, _PIECE))
            count -= _PIECE
            while piece and not stream.eof:
                stream.decompress(piece, _PIECE)
                piece = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof


def read_first(file: BinaryIO, tags: Collection[int]) -> dict[int, bytes]:
    """The values of some tags of the first directory, in little-endian order.

    Raises:
        OSError, struct.error, ValueError: it cannot be read.
    """
    return {tag: entry.value for tag, entry in _read_tree(file).first.items() if tag in tags}


def append_exif(file: BinaryIO, block: bytes | None, entries: Directory | None = None) -> None:
    """Add an EXIF block to a one-page TIFF file, opened for reading and writing. A damaged block is not added.

    Args:
        entries: of the first directory, to be added as well.

    Raises:
        OSError: writing fails.
    """
    try:
        target = _read_tree(file)
        source = _tree_of(block, target.form)
        first = {tag: entry for tag, entry in source.first.items() if tag in DESCRIPTIVE} | target.first
        first |= entries or {}
        at = file.seek(0, os.SEEK_END)
        padding = b"\0" * (at % 2)  # directories begin on a word boundary
        body, start = _pack_tree(first, source.nested | target.nested, at + len(padding), target.form)
        pointer = target.form.pointer.pack(start)
    except (struct.error, ValueError):
        return
    file.write(padding + body)
    file.seek(target.form.first)
    file.write(pointer)


def _tree_of(block: bytes | None, form: Form) -> Tree:
    """Of an EXIF block; without entries if there is none or it is damaged."""
    try:
        return _read_tree(io.BytesIO((block or b"").removeprefix(BLOCK_HEADER)))
    except (struct.error, ValueError):
        return Tree(form, {}, {})


def without_thumbnail(block: bytes) -> bytes:
    """The block with only its first directory: the next one would hold a thumbnail of the picture before restoring.

    Nothing moves, because maker notes often contain offsets; the bytes of the thumbnail remain unused.
    """
    content = bytearray(block.removeprefix(BLOCK_HEADER))
    form = _FORMS.get(bytes(content[:4]))
    try:
        if form:
            (first,) = form.pointer.unpack_from(content, form.first)
            (entries,) = form.number.unpack_from(content, first)
            form.pointer.pack_into(content, first + form.number.size + entries * form.entry.size, 0)
    except struct.error:
        pass  # damaged: left to the decoder
    return block[: len(block) - len(content)] + bytes(content)


def _form(file: BinaryIO) -> Form:
    file.seek(0)
    form = _FORMS.get(file.read(4))
    if form is None:
        raise ValueError("not a TIFF file")
    return form


def _read_tree(file: BinaryIO) -> Tree:
    form = _form(file)
    file.seek(form.first)
    first = _read_directory(file, _unpack(file, form.pointer)[0], form)
    nested = {}
    for tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
        if tag in first:
            nested[tag] = _read_directory(file, int.from_bytes(first.pop(tag).value, "little"), form)
            nested[tag].pop(INTEROPERABILITY, None)
    return Tree(form, first, nested)


def _read_directory(file: BinaryIO, offset: int, form: Form) -> Directory:
    size = file.seek(0, os.SEEK_END)
    file.seek(offset)
    (count,) = _unpack(file, form.number)
    if count > _MAX_ENTRIES:
        raise ValueError("damaged directory")
    directory = {}
    for tag, kind, items, field in [_unpack(file, form.entry) for _ in range(count)]:
        length = items * _TYPES.get(kind, (0, 0))[0]
        if not 0 < length <= size:
            continue
        if length > len(field):
            file.seek(form.pointer.unpack(field)[0])
            field = file.read(length)  # noqa: PLW2901 - the value instead of its offset
        if len(field) < length:
            raise ValueError("a value beyond the end of the file")
        directory[tag] = Entry(kind, items, _in_order(field[:length], kind, form))
    return directory


def _unpack(file: BinaryIO, form: struct.Struct) -> tuple:
    return form.unpack(file.read(form.size))


def _in_order(value: bytes, kind: int, form: Form) -> bytes:
    """Convert between little-endian and the file's byte order; its own inverse."""
    unit = _TYPES[kind][1]
    if form.order == "<" or unit == 1:
        return value
    return b"".join(value[i : i + unit][::-1] for i in range(0, len(value), unit))


def _pack_tree(first: Directory, nested: dict[int, Directory], at: int, form: Form) -> tuple[bytes, int]:
    """Bytes to write at offset `at`, with nested directories before the first; and the offset of the first."""
    body, pointers = b"", {}
    for tag, directory in nested.items():
        place = at + len(body)
        pointers[tag] = Entry(16, 1, struct.pack("<Q", place)) if form.big else Entry(4, 1, struct.pack("<I", place))
        body += _pack_directory(directory.items(), at + len(body), form)
    start = at + len(body)
    return body + _pack_directory((first | pointers).items(), start, form), start


def _pack_directory(directory: Iterable[tuple[int, Entry]], at: int, form: Form) -> bytes:
    entries = sorted(directory)  # TIFF 6.0 asks for ascending tags
    values_at = at + form.number.size + len(entries) * form.entry.size + form.pointer.size
    table, values = b"", b""
    for tag, (kind, items, value) in entries:
        field = _in_order(value, kind, form)
        if len(field) > form.pointer.size:
            place = form.pointer.pack(values_at + len(values))
            values += field + b"\0" * (len(field) % 2)
            field = place
        table += form.entry.pack(tag, kind, items, field)  # pads short values with zeros
    return form.number.pack(len(entries)) + table + form.pointer.pack(0) + values
