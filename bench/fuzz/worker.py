"""One process that reads damaged files and says what came of each.

It takes lines "KIND SEED_FILE MUTANT_FILE CUT" and answers each with one line "VERDICT DETAIL". What it cannot answer,
a crash or a hang, its parent sees (__main__.py).
"""

from __future__ import annotations

import functools
import resource
import sys
import traceback
from pathlib import Path

import numpy as np
import torch

from bench.fuzz.seeds import BLOCK, UNCHECKED
from swintormer.checkpoint.checkpoint import read_checkpoint
from swintormer.errors import SwintormerError
from swintormer.images.picture import Samples
from swintormer.images.reading import read_image
from swintormer.inference.deblurrer import Deblurrer

LONGEST_SENTENCE = 600
MEMORY = 8 * 2**30  # bytes of address space: a bomb meets this limit and not the machine's
FINE = ("refused", "same", "noted", "changed")
"""Verdicts that are no faults: an error in one sentence; the seed's pixels or values; others, and a note that says that
the file is damaged; others without a hole, as where a byte of an uncompressed picture has changed."""


def picture(seed: Path, mutant: Path, cut: bool) -> tuple[str, str]:
    """Read a damaged picture."""
    whole = _samples(seed)
    image = read_image(mutant)
    if image.samples.shape == whole.shape and np.array_equal(image.samples, whole):
        return "same", ""
    if image.notes:
        return "noted", image.notes[0]
    if cut:
        return "CUT", "a file that was cut short was read without a word"
    if image.samples.shape == whole.shape and not _is_unchecked(seed) and _has_hole(image.samples):
        return "HOLE", "a part of the picture has one colour"
    return "changed", ""


def checkpoint(seed: Path, mutant: Path, cut: bool) -> tuple[str, str]:
    """Read a damaged checkpoint, and use it."""
    read = read_checkpoint(mutant)
    channels = read.net.config.in_channels
    image = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    restored = Deblurrer(read.net, tile=16)(image if channels == 3 else image.repeat(1, channels // 3, 1, 1))
    if not torch.isfinite(restored).all():
        return "NAN", "the picture is not finite"
    if cut:
        return "CUT", "a file that was cut short was read without a word"
    return "changed", ""


def _is_unchecked(seed: Path) -> bool:
    """Whether any bytes may be a picture: there is no checksum, and zeros that were never written look like black."""
    return seed.stem.endswith(UNCHECKED) or seed.suffix in (".jpg", ".webp")


@functools.cache
def _samples(path: Path) -> Samples:
    return read_image(path).samples


def _has_hole(samples: Samples) -> bool:
    height, width, channels = samples.shape
    rows, columns = height // BLOCK, width // BLOCK
    blocks = samples[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, channels)
    return bool(np.any((blocks.max((1, 3)) == blocks.min((1, 3))).all(-1)))


def verdict(kind: str, seed: Path, mutant: Path, cut: bool) -> tuple[str, str]:
    """What came of one file; capitals are faults."""
    try:
        return {"picture": picture, "checkpoint": checkpoint}[kind](seed, mutant, cut)
    except SwintormerError as error:
        text = str(error)
        if "\n" in text or len(text) > LONGEST_SENTENCE:
            return "WORDS", repr(text)
        return "refused", text
    except Exception:
        return "TRACEBACK", repr(traceback.format_exc()[-LONGEST_SENTENCE:])


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, seed, mutant, cut = line.rstrip("\n").split("\t")
        print(*verdict(kind, Path(seed), Path(mutant), cut == "1"), sep="\t", flush=True)


if __name__ == "__main__":
    main()
