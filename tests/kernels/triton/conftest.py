"""Every test here may run kernels in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest


@pytest.fixture(autouse=True)
def interpreter(language_patched_once: None) -> None:
    """See `language_patched_once`."""


@pytest.fixture
def large_blocks() -> Iterator[None]:
    """In the interpreter an operation costs the same at any size, and the choices for GPUs make four times as many."""
    from swintormer_kernels.backends.triton import layout as tensors
    from swintormer_kernels.backends.triton import runtime

    sizes = {"tokens": 64, "queries": 64, "keys": 64, "chunk": 32, "programs": 2, "num_warps": 4, "num_stages": 1}
    with runtime.trying("swda_attention", sizes) if tensors.INTERPRETED else nullcontext():
        yield
