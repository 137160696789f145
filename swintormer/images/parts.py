"""What a file holds beside the samples of its picture, read without a decoder: frames, pages, quality, alpha.

libvips takes the first picture of a file and says nothing of most others. The formats: PNG 3rd edition, section 5 and
"acTL"; JPEG, ITU-T T.81 annex B, and CIPA DC-007 for several pictures in one file; TIFF 6.0, section 8; the container
of WebP, RFC 9649.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import BinaryIO

# The luminance table of T.81, annex K.1, in the order of the file: what libjpeg scales by its quality.
_LUMINANCE = (16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40,
              58, 51, 61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104,
              103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99)  # fmt: skip
_DQT, _APP2, _SOS = 0xDB, 0xE2, 0xDA
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Name, and the first four bytes of the content, of each chunk that is complete."""
    end, at = file.seek(0, os.SEEK_END), 8
    while at + 12 <= end:  # length, name, checksum
        file.seek(at)
        head = file.read(12)
        at += 12 + int.from_bytes(head[:4], "big")
        if at <= end:
            yield head[4:8], head[8:]


def png_frames(file: BinaryIO) -> int:
    """Of an animation; 1 for a plain picture."""
    for name, start in png_chunks(file):
        if name == b"acTL":
            return int.from_bytes(start, "big")
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
        if not byte or byte[0] == _SOS:
            return
        if byte[0] not in _WITHOUT_LENGTH:
            length = int.from_bytes(file.read(2), "big")
            yield byte[0], file.read(max(0, length - 2))


def jpeg_has_others(file: BinaryIO) -> bool:
    """Whether other pictures follow in the file: a second view, a gain map for bright screens, a large preview."""
    return any(marker == _APP2 and content.startswith(b"MPF\0") for marker, content in jpeg_segments(file))


def jpeg_quality(file: BinaryIO) -> int | None:
    """The quality, 1 to 100, at which libjpeg's luminance table is nearest to the file's; None without a table.

    Nearest is the least mean difference of the logarithms. The answer is exact for files of libjpeg (all 100 qualities
    but those with equal tables); tables of cameras and of Photoshop are others, of which it is the counterpart.
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
