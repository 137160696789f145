"""The golden files of tests/golden, and how the large one is stored."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load

GOLDEN = Path(__file__).resolve().parent / "golden"
NETWORK = GOLDEN / "network_dim16_window8.safetensors.z"


def pack(file: bytes) -> bytes:
    """A safetensors file of float32, without loss: signs moved to the last bit, equal bytes of all words together.

    Random mantissas cannot be compressed; exponents, then a byte of their own, can.
    """
    words = np.frombuffer(file, "<u4")
    planes = np.ascontiguousarray(((words << 1) | (words >> 31)).astype("<u4").view("u1").reshape(-1, 4).T)
    return zlib.compress(planes.tobytes(), 9)


def unpack(packed: bytes) -> bytes:
    """What `pack` was given."""
    planes = np.frombuffer(zlib.decompress(packed), "u1").reshape(4, -1)
    words = np.ascontiguousarray(planes.T).view("<u4")
    return ((words >> 1) | (words << 31)).astype("<u4").tobytes()


def golden_network() -> dict[str, torch.Tensor]:
    """`param.*`, `in.x` and `out.y` of the released network."""
    return load(unpack(NETWORK.read_bytes()))
