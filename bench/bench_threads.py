"""Whose threads: ddim_step and torch.add in turn, on torch's own threads and on the package's own."""

import statistics

import pytest
import torch

from swintormer_kernels import Prediction, native
from swintormer_kernels.backends.cpu.ddim_step import ddim_step
from swintormer_kernels.testing.timing import timed


@pytest.fixture
def extension():
    if native.why_absent() is not None:
        pytest.skip(native.why_absent())
    if native.extension().thread_source() != "openmp":
        pytest.skip("this process has no OpenMP runtime to share")
    yield native.extension()
    native.extension().use_own_threads(False)


def bench_threads_in_turn_with_torch(extension, benchmark, notes):
    """The row is on torch's threads; extra_info has the median on the package's own (csrc/base/parallel.cpp)."""
    z, noise_pred = torch.randn(2, 131072)
    out = torch.empty_like(z)
    own = []

    def pairs():
        for _ in range(10):
            ddim_step(z, noise_pred, 0.2, 0.3, 0.0, 1.0, None, Prediction())
            torch.add(z, noise_pred, out=out)

    def on_own_threads():
        extension.use_own_threads(True)
        own.append(timed(pairs))
        extension.use_own_threads(False)
        torch.add(z, noise_pred, out=out)

    benchmark.group = "ten pairs of ddim_step and torch.add, 131072 elements each"
    benchmark.pedantic(pairs, setup=on_own_threads, rounds=30, warmup_rounds=2)
    benchmark.extra_info["median on own threads, us"] = 1e6 * statistics.median(own)
    notes.append(
        f"ten pairs of ddim_step and torch.add: {1e6 * benchmark.stats.stats.median:.0f} us on torch's threads, "
        f"{1e6 * statistics.median(own):.0f} us on our own"
    )
