"""Every test here may run kernels in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def interpreter(language_patched_once: None) -> None:
    """See `language_patched_once`."""


@pytest.fixture
def fixed_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, int]], None]:
    """(kernel, blocks): that kernel takes these blocks, whatever its sizes and dtype."""
    from swintormer_kernels.backends.triton import blocks

    def fix(kernel: str, sizes: dict[str, int]) -> None:
        always = ((2**31, tuple(sizes.values())),)
        monkeypatch.setitem(blocks.SIZES, kernel, (tuple(sizes), {"float32": always, "half": always}))

    return fix


@pytest.fixture
def large_blocks(fixed_blocks: Callable[[str, dict[str, int]], None]) -> None:
    """In the interpreter an operation costs the same at any size, and the blocks for GPUs make four times as many."""
    from swintormer_kernels.backends.triton.layout import INTERPRETED

    if INTERPRETED:
        sizes = {"tokens": 64, "queries": 64, "keys": 64, "chunk": 32, "programs": 2, "num_warps": 4, "num_stages": 1}
        fixed_blocks("swda_attention", sizes)


@pytest.fixture(autouse=True)
def products_of_no_library(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """tl.dot in the interpreter, in one order for each element and on every machine.

    The interpreter takes numpy's product, whose order of summation depends on the BLAS kernel that the processor gets
    and on where an element stands in the matrix. What is tested is the order of our kernels. Here an element is the sum
    of its exact products in float64, along k, rounded once: it depends on its row and its column alone.
    """
    from swintormer_kernels.backends.triton.layout import INTERPRETED

    if not INTERPRETED:
        return
    module = pytest.importorskip("triton.runtime.interpreter")

    def create_dot(builder: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        left, right = a.data.astype(np.float64), b.data.astype(np.float64)
        total = np.zeros(d.data.shape)
        for k in range(left.shape[-1]):
            total += left[..., :, k, None] * right[..., k, None, :]
        return module.TensorHandle(total.astype(d.data.dtype) + d.data, d.dtype.scalar)

    monkeypatch.setattr(module.InterpreterBuilder, "create_dot", create_dot)
