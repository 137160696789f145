"""What a file holds beside the samples of its picture, read without a decoder: frames, pages, quality, kind of alpha,
gain maps, videos, checksums.

libvips takes the first picture of a file and says nothing of most others. The formats: PNG 3rd edition, section 5 and
"acTL"; JPEG, ITU-T T.81 annex B, and CIPA DC-007 for several pictures in one file; TIFF 6.0, sections 8 and 18; the
container of WebP, RFC 9649.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

from swintormer.images.tiff import Directory, directories, numbers, read_first, read_tree

# The luminance table of T.81, annex K.1, in the order of the file: what libjpeg scales by its quality.
_LUMINANCE = (16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40,
              58, 51, 61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104,
              103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99)  # fmt: skip
_DQT, _APP1, _APP2, _SOS, _EOI = 0xDB, 0xE1, 0xE2, 0xDA, 0xD9
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}

_SUBFILE_TYPE, _OLD_SUBFILE_TYPE = 0x00FE, 0x00FF
_BITS_PER_SAMPLE, _SAMPLES = 0x0102, 0x0115
_EXTRA_SAMPLES, _ASSOCIATED = 0x0152, 1
_COLOURS, _PALETTE = 0x0106, 3
_COMPRESSION, _DEFLATE = 0x0103, (b"\x08\0", b"\xb2\x80")  # Adobe's number and the older one
_PIECE = 1 << 20  # bytes that are decompressed at a time


def png_chunks(file: BinaryIO, wanted: Collection[bytes] = ()) -> Iterator[tuple[bytes, bytes]]:
    """Name of each chunk that is complete, and the content of those that are wanted."""
    end, at = file.seek(0, os.SEEK_END), 8
    while at + 12 <= end:  # length, name, checksum
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        at += 12 + length
        if at <= end:
            yield name, file.read(length) if name in wanted else b""


def png_frames(file: BinaryIO) -> int:
    """Of an animation; 1 for a plain picture."""
    for name, content in png_chunks(file, {b"acTL"}):
        if name == b"acTL":
            return int.from_bytes(content[:4], "big")
        if name == b"IDAT":
            break
    return 1


def jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment before the samples."""
    file.seek(2)
    while True:
        byte = file.read(1)
        while byte not in (b"", b"\xff"):  # what decoders skip, too
            byte = file.read(1)
        while byte == b"\xff":
            byte = file.read(1)
        if not byte or byte[0] in (_SOS, _EOI):
            return
        if byte[0] not in _WITHOUT_LENGTH:
            length = int.from_bytes(file.read(2), "big")
            yield byte[0], file.read(max(0, length - 2))


def jpeg_has_others(file: BinaryIO) -> bool:
    """Whether other pictures follow in the file: a second view, a gain map for bright screens, a large preview."""
    return any(marker == _APP2 and content.startswith(b"MPF\0") for marker, content in jpeg_segments(file))


def heif_has_gain_map(file: BinaryIO) -> bool:
    """Whether a HEIC file holds a gain map for bright screens, as those of telephones do; ISO 21496-1 and Apple's."""
    file.seek(0)
    start = file.read(1 << 16)  # the boxes that list what is there
    return any(name in start for name in (b"hdrgainmap", b"tmap"))


def jpeg_has_video(file: BinaryIO) -> bool:
    """Whether the file ends in a short video, as telephones store it: the XMP data say so."""
    return any(
        marker == _APP1 and re.search(rb"(MotionPhoto|MicroVideo)(=[\"']|>)1", content)
        for marker, content in jpeg_segments(file)
    )


def jpeg_quality(file: BinaryIO) -> int | None:
    """The quality, 1 to 100, at which libjpeg's luminance table is nearest to the file's; None without a table.

    Nearest is the least mean difference of the logarithms. The answer is exact for files of libjpeg; tables of
    cameras and of Photoshop are others, of which it is the counterpart.
    """
    for marker, content in jpeg_segments(file):
        if marker == _DQT and len(content) >= 65 and content[0] == 0:  # 8-bit table number 0
            found = [math.log(max(step, 1)) for step in content[1:65]]
            return min(range(100, 0, -1), key=lambda quality: _distance(found, quality))
    return None


def _distance(found: list[float], quality: int) -> float:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = (min(max((step * scale + 50) // 100, 1), 255) for step in _LUMINANCE)
    return sum(abs(math.log(step) - other) for step, other in zip(steps, found, strict=True))


def webp_is_lossless(file: BinaryIO) -> bool:
    """Whether the picture is coded without loss."""
    end, at = file.seek(0, os.SEEK_END), 12
    while at + 8 <= end:
        file.seek(at)
        head = file.read(8)
        if head[:4] in (b"VP8 ", b"VP8L"):
            return head[:4] == b"VP8L"
        at += 8 + int.from_bytes(head[4:], "little")
        at += at % 2
    return False


def tiff_pages(file: BinaryIO) -> list[bool]:
    """For each page of a TIFF file whether it is a reduced copy of another; empty if that cannot be read."""
    try:
        return [_is_reduced(directory) for directory in directories(file)]
    except (struct.error, ValueError):
        return []


def _is_reduced(directory: Directory) -> bool:
    if _SUBFILE_TYPE in directory:
        return bool(directory[_SUBFILE_TYPE].value[0] & 1)
    return _OLD_SUBFILE_TYPE in directory and directory[_OLD_SUBFILE_TYPE].value[0] == 2


def tiff_samples_agree(file: BinaryIO) -> bool:
    """Whether no more samples have a number of bits than there are: some programs write one number for all."""
    try:
        found = read_first(file, {_BITS_PER_SAMPLE, _SAMPLES})
    except (struct.error, ValueError):
        return True  # told elsewhere
    return len(found.get(_BITS_PER_SAMPLE, b"")) // 2 <= int.from_bytes(found.get(_SAMPLES, b"\1"), "little")


def tiff_has_associated_alpha(file: BinaryIO) -> bool:
    """Whether the colours are stored multiplied by alpha."""
    return _first_byte(file, _EXTRA_SAMPLES) == _ASSOCIATED


def tiff_has_palette(file: BinaryIO) -> bool:
    return _first_byte(file, _COLOURS) == _PALETTE


def _first_byte(file: BinaryIO, tag: int) -> int | None:
    try:
        value = read_first(file, {tag}).get(tag)
    except (struct.error, ValueError):
        return None
    return value[0] if value else None


def tiff_is_whole(file: BinaryIO) -> bool:
    """Whether all strips or tiles of a TIFF file in Deflate have their checksum; True in other compressions.

    libtiff stops before the checksum, and damage may still decode, to black rows for instance. This costs a second
    decompression.
    """
    try:
        first = read_tree(file).first
        if _COMPRESSION not in first or first[_COMPRESSION].value[:2] not in _DEFLATE:
            return True
        offsets, counts = (numbers(first[a if a in first else b]) for a, b in ((0x0111, 0x0144), (0x0117, 0x0145)))
        return all(_is_whole(file, at, count) for at, count in zip(offsets, counts, strict=True) if count)
    except (OSError, struct.error, ValueError, KeyError):
        return True  # for the decoder to judge


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
