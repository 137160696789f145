"""From the network's numbers to the samples of a picture, at once or later: a restoration kept for any strength.

A mix of restored pixels and original ones needs no network. What is kept are the float32 numbers of each finished part,
because a mix of rounded samples would differ from what `Deblurrer(strength=)` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swintormer.data.degrade.light import light_to_srgb, srgb_to_light
from swintormer.errors import SwintormerError
from swintormer.images.files import reason

Samples: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]


def mixed(restored: Tensor, original: Callable[[], Tensor], strength: float) -> Tensor:
    """`strength` parts of the restored pixels and the rest of the original ones, in linear light."""
    if strength == 1:
        return restored
    if strength == 0:
        return original()
    # Of one memory layout: where a vector ends decides the last bit of a power.
    restored = restored.contiguous()
    light = torch.lerp(srgb_to_light(original().to(restored)), srgb_to_light(restored), strength)
    return light_to_srgb(light)


def write_part(
    output: Samples, original: Samples, rows: slice, columns: slice, restored: Tensor, strength: float
) -> None:
    """Mix one part of a picture, round it to the nearest sample and clamp it.

    Args:
        output, original: (H, W, C), C 1 or 3, of one dtype.
        restored: (C, rows, columns), in [0, 1] where it is not to be clamped.
        strength: 0 to 1, see `Deblurrer`.
    """
    full = float(np.iinfo(output.dtype).max)

    def samples() -> Tensor:
        return torch.from_numpy(original[rows, columns].astype(np.float32) / full).permute(2, 0, 1)

    finished = mixed(restored, samples, strength)
    output[rows, columns] = (finished * full).round_().clamp_(0, full).permute(1, 2, 0).numpy()


class Kept:
    """The restoration of one picture in a file, four bytes a number: part after part, as `Deblurrer.restore_parts`
    gives them.

    Args:
        path: of the file, which is made new.

    Raises:
        SwintormerError: the file cannot be written or read, as on a full disk; also from the methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: list[tuple[slice, slice]] = []
        try:
            path.write_bytes(b"")
        except OSError as error:
            raise SwintormerError(f"Cannot write {path}: {reason(error)}.") from error

    def take(self, rows: slice, columns: slice, part: Tensor) -> None:
        """Append one part, (C, rows, columns)."""
        try:
            with self.path.open("ab") as file:
                file.write(part.to(torch.float32).contiguous().numpy().data)
        except OSError as error:
            raise SwintormerError(f"Cannot write {self.path}: {reason(error)}.") from error
        self._parts.append((rows, columns))

    def samples(self, original: Samples, strength: float) -> Samples:
        """What `Deblurrer(strength=strength).restore_array(original)` gives, bit for bit with as many threads and a
        network of float32.

        Args:
            original: (H, W, C), the picture that was restored.
        """
        output = np.empty_like(original, order="C")
        channels = original.shape[2]
        try:
            with self.path.open("rb") as file:
                for rows, columns in self._parts:
                    shape = channels, rows.stop - rows.start, columns.stop - columns.start
                    numbers = np.fromfile(file, np.float32, int(np.prod(shape))).reshape(shape)
                    write_part(output, original, rows, columns, torch.from_numpy(numbers), strength)
        except OSError as error:
            raise SwintormerError(f"Cannot read {self.path}: {reason(error)}.") from error
        return output
