"""Random damage to files: what disks, networks, broken programs and hostile people do to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HEAD = 256  # bytes at the beginning of a file that are hit as often as all others
LONGEST = 64  # bytes of a run that is removed, repeated, moved or overwritten
_VALUES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Mutant:
    """A damaged file.

    Attributes:
        cut: nothing but bytes at the end is missing.
    """

    content: bytes
    cut: bool


def mutate(rng: np.random.Generator, content: bytes, other: bytes) -> Mutant:
    """`content` with one kind of damage, one to four times; `other` is another file of the kind, to take pieces of."""
    if rng.random() < 0.2:
        return Mutant(content[: rng.integers(1, len(content))], cut=True)
    kind = _KINDS[rng.integers(len(_KINDS))]
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        kind(rng, data, other)
    return Mutant(bytes(data), cut=False)


def _place(rng: np.random.Generator, data: bytes | bytearray) -> int:
    """Anywhere, or in the head, or in the tail, where TIFF keeps its directory and ZIP its table."""
    where = rng.random()
    if where < 0.4 or len(data) <= HEAD:
        return int(rng.integers(len(data)))
    start = 0 if where < 0.7 else len(data) - HEAD
    return start + int(rng.integers(HEAD))


def _run(rng: np.random.Generator, data: bytes | bytearray) -> slice:
    start = _place(rng, data)
    return slice(start, start + int(rng.integers(1, LONGEST)))


def _flip(rng: np.random.Generator, data: bytearray, other: bytes) -> None:
    data[_place(rng, data)] ^= 1 << int(rng.integers(8))


def _noise(rng: np.random.Generator, data: bytearray, other: bytes) -> None:
    run = _run(rng, data)
    data[run] = rng.bytes(len(data[run]))


def _value(rng: np.random.Generator, data: bytearray, other: bytes) -> None:
    """A number at the edge of its type where a length, a count or an offset may be."""
    size, value = int(rng.choice((1, 2, 4, 8))), _VALUES[rng.integers(len(_VALUES))]
    start = min(_place(rng, data) // size * size, len(data) - size)
    order = "little" if rng.random() < 0.5 else "big"
    data[start : start + size] = (value & (256**size - 1)).to_bytes(size, order)


def _remove(rng: np.random.Generator, data: bytearray, other: bytes) -> None:
    if len(data) > 2 * LONGEST:
        del data[_run(rng, data)]


def _repeat(rng: np.random.Generator, data: bytearray, other: bytes) -> None:
    run, place = _run(rng, data), _place(rng, data)
    data[place:place] = data[run]


def _swap(rng: np.random.Generator, data: bytearray, other: bytes) -> None:
    first, second = _run(rng, data), _run(rng, data)
    data[first], data[second] = data[second], data[first]


def _splice(rng: np.random.Generator, data: bytearray, other: bytes) -> None:
    run = _run(rng, other)
    start = _place(rng, data)
    data[start : start + run.stop - run.start] = other[run]


def _zeros(rng: np.random.Generator, data: bytearray, other: bytes) -> None:
    """A block that was never written, as after a power cut."""
    start = _place(rng, data)
    run = slice(start, start + int(rng.integers(1, max(2, len(data) // 2))))
    data[run] = bytes(len(data[run]))


_KINDS = (_flip, _flip, _noise, _value, _value, _remove, _repeat, _swap, _splice, _zeros)
