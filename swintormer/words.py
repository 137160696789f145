"""Numbers as sentences tell them."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """1 tile, 2 tiles."""
    return f"{count} {noun}{'s' * (count != 1)}"


def bytes_in_words(count: int) -> str:
    """12 MB, 3 KB, 102 bytes: powers of 1000."""
    for unit, factor in (("MB", 10**6), ("KB", 10**3)):
        if count >= factor:
            return f"{count / factor:,.0f} {unit}"
    return counted(count, "byte")
