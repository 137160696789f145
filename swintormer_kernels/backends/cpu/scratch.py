"""Scratch memory of the ops of a denoiser, kept from one call to the next.

A step of a sampler calls the same ops on the same shapes again and again. Scratch from the allocator is returned to the
operating system and fetched again, page by page; here each thread keeps one piece of memory, which grows to the largest
scratch that one of its calls asked for and is returned when the thread ends or asks for it (`release_scratch`).
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from swintormer_kernels import native

MOST_FLOATS = 1 << 24
"""A thread keeps at most so much, 64 MiB; the released denoiser at a 128 latent takes 10 MB on two threads."""

GLIBC_KEEPS = 128 << 10
"""Bytes at the heap's end that glibc keeps by itself, and from which on it takes blocks from the system."""

_ALIGNED = 16  # floats: one cache line, and one vector of AVX-512


class _Kept(threading.local):
    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.grown = 0


_kept = _Kept()


class Scratch:
    """Uninitialised float32 memory, one piece for each of the sizes asked for; alive as long as these buffers are.

    Attributes:
        buffers: one for each size, at multiples of a cache line, as `layout.dense` gives them.
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
    """Let go of the memory that the calling thread keeps between calls of the cpu backend's ops; returns its bytes.

    group_norm_silu, norm_projection, norm_silu_conv3x3, res_block and upsample_conv3x3 compute in it. From a thread's
    second call with the same shapes and thread count on they take no new memory but their result, which is a tensor of
    torch's, and a copy of an input that lies as they cannot read it. A call that needs more than 64 MiB takes and
    returns what it needs.
    """
    memory, _kept.memory = _kept.memory, None
    return 0 if memory is None else 4 * memory.numel()


def keep_freed_memory(most: int = 256 << 20) -> bool:
    """Let glibc keep what this process frees, up to `most` bytes, instead of returning it to the operating system.

    For a program that samples step after step: torch's results come from malloc, which returns and fetches them again,
    page by page (a step of the compact denoiser at a 64 latent: 212 page faults without this, 6 with it). For the whole
    process, until it ends; blocks of more than 32 MiB, and what other threads than the first free, may go back all the
    same.

    Args:
        most: bytes, at least 131072: with less glibc would keep less than it does by itself.

    Returns:
        Whether the allocator could be told; False without glibc or the native extension.

    Raises:
        ValueError: `most` is below that.
    """
    if most < GLIBC_KEEPS:
        raise ValueError(f"most must be at least {GLIBC_KEEPS} bytes, found {most}")
    return native.why_absent() is None and native.extension().keep_freed_memory(most)


def times_grown() -> int:
    """How often the calling thread had to take memory for scratch."""
    return _kept.grown


def _memory(floats: int) -> Tensor:
    memory = _kept.memory
    if memory is not None and memory.numel() >= floats:
        if torch._C._get_deterministic_fill_uninitialized_memory() and torch.are_deterministic_algorithms_enabled():
            memory[:floats].fill_(torch.nan)  # as torch.empty does then
        return memory
    _kept.grown += 1
    if floats > MOST_FLOATS:
        return torch.empty(floats, dtype=torch.float32, device="cpu")
    _kept.memory = None  # the old piece goes before the new one comes
    with torch.inference_mode(False):
        _kept.memory = torch.empty(floats, dtype=torch.float32, device="cpu")
    return _kept.memory
