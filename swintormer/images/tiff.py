"""Directories of TIFF files, of which EXIF blocks are small ones: read, and packed to be written.

All offsets in TIFF are absolute (TIFF 6.0, section 2; BigTIFF as in libtiff; EXIF 2.32, section 4.6).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple

EXIF_DIRECTORY, GPS_DIRECTORY = 0x8769, 0x8825
INTEROPERABILITY = 0xA005  # in the EXIF directory; it says which colours a camera used: R98 sRGB, R03 Adobe RGB

# TIFF field type -> (bytes, bytes of each number in it: rationals are two 4-byte numbers)
_TYPES = {1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4), 10: (8, 4),
          11: (4, 4), 12: (8, 8), 13: (4, 4), 16: (8, 8), 17: (8, 8), 18: (8, 8)}  # fmt: skip
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


FORMS = {b"II*\0": Form("<", False), b"MM\0*": Form(">", False), b"II+\0": Form("<", True), b"MM\0+": Form(">", True)}


class Entry(NamedTuple):
    """One tag: TIFF field type, how many items, and their bytes, always little-endian."""

    type: int
    items: int
    value: bytes


Directory = dict[int, Entry]


class Tree(NamedTuple):
    """The first directory without its pointers, and the EXIF, GPS and interoperability directories by the tag of their
    pointer."""

    form: Form
    first: Directory
    nested: dict[int, Directory]


def read_first(file: BinaryIO, tags: Collection[int]) -> dict[int, bytes]:
    """The values of some tags of the first directory, in little-endian order.

    Raises:
        OSError, struct.error, ValueError: it cannot be read.
    """
    return {tag: entry.value for tag, entry in read_tree(file).first.items() if tag in tags}


def numbers(entry: Entry) -> list[int]:
    size = _TYPES[entry.type][0]
    return [int.from_bytes(entry.value[at : at + size], "little") for at in range(0, len(entry.value), size)]


def form_of(file: BinaryIO) -> Form:
    file.seek(0)
    form = FORMS.get(file.read(4))
    if form is None:
        raise ValueError("not a TIFF file")
    return form


def directories(file: BinaryIO) -> Iterator[Directory]:
    """The directory of each page.

    Raises:
        OSError, struct.error, ValueError: one cannot be read.
    """
    form, seen = form_of(file), set[int]()
    file.seek(form.first)
    (at,) = _unpack(file, form.pointer)
    while at and at not in seen:
        seen.add(at)
        yield read_directory(file, at, form)
        file.seek(at)
        (entries,) = _unpack(file, form.number)
        file.seek(at + form.number.size + entries * form.entry.size)
        (at,) = _unpack(file, form.pointer)


def read_tree(file: BinaryIO) -> Tree:
    form = form_of(file)
    file.seek(form.first)
    first = read_directory(file, _unpack(file, form.pointer)[0], form)
    nested = {}
    for tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
        if (pointer := first.pop(tag, None)) and (found := nested_directories(file, pointer, form)):
            nested[tag] = found[0]
    pointer = nested.get(EXIF_DIRECTORY, {}).pop(INTEROPERABILITY, None)
    if pointer and (found := nested_directories(file, pointer, form)):
        nested[INTEROPERABILITY] = found[0]
    return Tree(form, first, nested)


def nested_directories(file: BinaryIO, pointers: Entry, form: Form) -> list[Directory]:
    """The directories that an entry points to, without those that cannot be read: some programs leave such pointers."""
    found = []
    for at in numbers(pointers):
        with suppress(struct.error, ValueError):
            found.append(read_directory(file, at, form))
    return found


def read_directory(file: BinaryIO, offset: int, form: Form) -> Directory:
    size = file.seek(0, os.SEEK_END)
    if offset >= size:
        raise ValueError("a directory beyond the end of the file")
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


def pack_tree(first: Directory, nested: dict[int, Directory], at: int, form: Form) -> tuple[bytes, int]:
    """Bytes to write at offset `at`, with nested directories before the first; and the offset of the first."""
    body = b""
    pointers: Directory = {}
    for tag in (INTEROPERABILITY, EXIF_DIRECTORY, GPS_DIRECTORY):
        if tag not in nested:
            continue
        directory = nested[tag] | ({} if tag == GPS_DIRECTORY else pointers)
        pointers.pop(INTEROPERABILITY, None)
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
