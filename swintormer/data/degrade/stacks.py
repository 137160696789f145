"""Numbers and arrays of B samples as one tensor beside a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def column(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """B numbers as (B, 1, 1, 1), to be multiplied with a batch `like` (B, C, H, W)."""
    return torch.tensor(numbers, dtype=like.dtype).to(like.device)[:, None, None, None]


def rows(arrays: Sequence[NDArray[Any]], like: torch.Tensor) -> torch.Tensor:
    """B arrays of one shape as (B, ...), of the dtype and on the device of `like`."""
    stacked = arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    return torch.from_numpy(np.ascontiguousarray(stacked)).to(like.device, like.dtype)
