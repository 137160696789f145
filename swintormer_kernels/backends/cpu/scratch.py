"""Scratch memory of the denoiser's ops and of the block's gradients, kept between calls.

A sampler or a training run calls the same ops with the same shapes in every step. The allocator would return scratch to
the operating system and fetch it again page by page. Instead each thread keeps one block of memory, which grows to the
largest scratch of its calls and is freed when the thread ends or calls `release_scratch`.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from swintormer_kernels import native

MOST_FLOATS = 1 << 24
"""Floats that a thread keeps at most, 64 MiB; the released denoiser with a 128 latent takes 10 MB on two threads."""

GLIBC_KEEPS = 128 << 10
"""glibc's default limits: free bytes kept at the end of the heap, and size from which blocks are mapped separately."""

_ALIGNED = 16  # floats: one cache line, and one vector of AVX-512


class _Kept(threading.local):
    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.grown = 0


_kept = _Kept()


class Scratch:
    """Uninitialised float32 memory: one buffer per requested size, valid while the buffers are referenced.

    Attributes:
        buffers: (address, floats, owner) for each size, aligned to a cache line, as from `layout.dense`.
    """

    __slots__ = ("buffers",)

    def __init__(self, *floats: int) -> None:
        starts, total = [], 0
        for size in floats:
            starts.append(total)
            total += -(-size // _ALIGNED) * _ALIGNED
        memory = _memory(total + _ALIGNED)
        first = -(-memory.data_ptr() // (4 * _ALIGNED)) * (4 * _ALIGNED)
        self.buffers = [(first + 4 * start, size, memory) for start, size in zip(starts, floats, strict=True)]


def release_scratch() -> int:
    """Free the scratch memory that the calling thread keeps between calls of the cpu backend's ops; returns its bytes.

    group_norm_silu, norm_projection, norm_silu_conv3x3, res_block, upsample_conv3x3 and gradients of the block's ops
    use it. From the second call with the same shapes and thread count on, they allocate only their result and copies of
    inputs in unsupported memory layouts. Scratch of more than 64 MiB is not kept.
    """
    memory, _kept.memory = _kept.memory, None
    return 0 if memory is None else 4 * memory.numel()


def keep_freed_memory(most: int = 256 << 20) -> bool:
    """Make glibc keep up to `most` bytes of freed memory instead of returning them to the operating system.

    For programs that run a sampler: torch allocates results with malloc, which would return the memory and fetch it
    again page by page (a step of the compact denoiser with a 64 latent: 212 page faults, 6 with this). Affects the
    whole process until it ends. Blocks of more than 32 MiB and memory freed by other threads may still be returned.

    Args:
        most: bytes, at least 131072, glibc's default.

    Returns:
        Whether the setting took effect; False without glibc or the native extension.

    Raises:
        ValueError: `most` is less than 131072.
    """
    if most < GLIBC_KEEPS:
        raise ValueError(f"most must be at least {GLIBC_KEEPS} bytes, found {most}")
    return native.why_absent() is None and native.extension().keep_freed_memory(most)


def times_grown() -> int:
    """Number of times that the calling thread allocated scratch."""
    return _kept.grown


def _memory(floats: int) -> Tensor:
    memory = _kept.memory
    if memory is not None and memory.numel() >= floats:
        if torch._C._get_deterministic_fill_uninitialized_memory() and torch.are_deterministic_algorithms_enabled():
            memory[:floats].fill_(torch.nan)  # as torch.empty does in this mode
        return memory
    _kept.grown += 1
    if floats > MOST_FLOATS:
        return torch.empty(floats, dtype=torch.float32, device="cpu")
    _kept.memory = None  # free the old block before allocating the new one
    with torch.inference_mode(False):
        _kept.memory = torch.empty(floats, dtype=torch.float32, device="cpu")
    return _kept.memory
