"""Times on machines that do something else as well: turn by turn (A B A B ...), medians, beside the machine's own rate.

A ratio of two medians from one such run means something; an absolute time hardly does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from swintormer_kernels import native


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(turns: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each turn in each of `rounds` rounds, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 + rounds):
        for name, turn in turns.items():
            seconds[name].append(timed(turn))
    return {name: measured[1:] for name, measured in seconds.items()}


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that torch holds at most during `function()`, above what it held before (torch.profiler's allocations)."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def peak_rate(dtype: str = "float32") -> float:
    """FLOP/s of multiply-adds between registers on as many threads as torch has: no kernel can be faster.

    Args:
        dtype: "float32", or "bfloat16" for dot products of bfloat16.

    Returns:
        NaN where the extension is absent or this machine has no such instruction.
    """
    measure = getattr(native, "peak_gflops", None)
    found = measure and measure(dtype, torch.get_num_threads())
    return 1e9 * found if found else float("nan")


class TorchRate:
    """The rate of torch's fastest float32 work: a matrix product, and a 1x1 convolution of a shape of the network.

    It is reported together with `peak_rate`, which torch does not reach. `turns` are timed in the same rounds as the
    code under test. A turn takes about a tenth of a second, like a tile, so that a busy machine slows both equally.
    """

    _PRODUCTS = 10

    def __init__(self) -> None:
        a, b = torch.randn(2, 768, 768)
        x = torch.randn(1, 192, 64, 64).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(1020, 192, 1, 1)
        self._flops = {"matrix product": 2 * 768**3, "1x1 convolution": 2 * x.numel() * weight.shape[0]}
        self.turns: dict[str, Callable[[], object]] = {
            "matrix product": lambda: [a @ b for _ in range(self._PRODUCTS)],
            "1x1 convolution": lambda: [torch.conv2d(x, weight) for _ in range(self._PRODUCTS)],
        }

    def rate(self, seconds: Mapping[str, Sequence[float]]) -> float:
        """The best FLOP/s of any of these products: the rate that torch reaches on this machine."""
        return max(self._PRODUCTS * flops / min(seconds[name]) for name, flops in self._flops.items())
