"""Launches on the emulated device (csrc/cuda/host), where each CUDA thread is a fiber on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


def launch(
    library: Path,
    block: tuple[str, int, int, int],
    pointers: Sequence[Tensor | None],
    integers: Sequence[int],
    floats: Sequence[float],
) -> None:
    raise NotImplementedError
