"""EXIF in TIFF files, which libvips 8.18 neither reads nor writes: camera, lens, exposure, place, author.

An EXIF block in JPEG, PNG and WebP is itself a small TIFF file after the six bytes "Exif\\0\\0", so the same functions
handle both. New entries are appended, and the first directory is written again at the end of the file. No pixel moves.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

from swintormer.images.tiff import FORMS, Directory, Form, Tree, pack_tree, read_tree

# The tags of the first directory that describe the picture; the others describe how its samples are stored.
# Name of the document, description, maker, model, name of the page, software, date, artist, host, rating, copyright;
# Windows' title, comment, author, keywords, subject.
DESCRIPTIVE = {0x010D, 0x010E, 0x010F, 0x0110, 0x011D, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x8298,
               *range(0x9C9B, 0x9CA0)}  # fmt: skip
BLOCK_HEADER = b"Exif\0\0"


def read_exif(path: Path) -> bytes | None:
    """The EXIF of a TIFF file as a block, or None if it has none or cannot be read."""
    try:
        with path.open("rb") as file:
            tree = read_tree(file)
    except (OSError, struct.error, ValueError):
        return None  # the picture itself may still be sound
    first = {tag: entry for tag, entry in tree.first.items() if tag in DESCRIPTIVE}
    if not (first or tree.nested):
        return None
    form = Form("<", False)
    header = b"II*\0"
    body, at = pack_tree(first, tree.nested, len(header) + 4, form)
    return BLOCK_HEADER + header + form.pointer.pack(at) + body


def append_exif(file: BinaryIO, block: bytes | None, entries: Directory | None = None) -> None:
    """Add an EXIF block to a one-page TIFF file, opened for reading and writing. A damaged block is not added.

    Args:
        entries: of the first directory, to be added as well.

    Raises:
        OSError: writing fails.
    """
    try:
        target = read_tree(file)
        source = _tree_of(block, target.form)
        first = {tag: entry for tag, entry in source.first.items() if tag in DESCRIPTIVE} | target.first
        first |= entries or {}
        at = file.seek(0, os.SEEK_END)
        padding = b"\0" * (at % 2)  # directories begin on a word boundary
        body, start = pack_tree(first, source.nested | target.nested, at + len(padding), target.form)
        pointer = target.form.pointer.pack(start)
    except (struct.error, ValueError):
        return
    file.write(padding + body)
    file.seek(target.form.first)
    file.write(pointer)


def _tree_of(block: bytes | None, form: Form) -> Tree:
    """Of an EXIF block; without entries if there is none or it is damaged."""
    try:
        return read_tree(io.BytesIO((block or b"").removeprefix(BLOCK_HEADER)))
    except (struct.error, ValueError):
        return Tree(form, {}, {})


def without_thumbnail(block: bytes) -> bytes:
    """The block with only its first directory: the next one would hold a thumbnail of the picture before restoring.

    Nothing moves, because maker notes often contain offsets; the bytes of the thumbnail remain unused.
    """
    content = bytearray(block.removeprefix(BLOCK_HEADER))
    form = FORMS.get(bytes(content[:4]))
    try:
        if form:
            (first,) = form.pointer.unpack_from(content, form.first)
            (entries,) = form.number.unpack_from(content, first)
            form.pointer.pack_into(content, first + form.number.size + entries * form.entry.size, 0)
    except struct.error:
        pass  # damaged: left to the decoder
    return block[: len(block) - len(content)] + bytes(content)
