"""Times and memory of a GPU: events, inputs rotated beyond the cache, medians. On a CPU, for the tests, the clock."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

WARM_UPS = 3
LEAST, MOST = 5, 200


def median_ms(call: Callable[[], object], device: str = "cuda", seconds: float = 0.2) -> float:
    """Median milliseconds of a call, over as many as fit `seconds`, five at least."""
    return rotating_ms([call], device, seconds)


def rotating_ms(calls: Sequence[Callable[[], object]], device: str = "cuda", seconds: float = 0.2) -> float:
    """The same of calls that do the same work on other data, in turn."""
    for number in range(WARM_UPS):
        calls[number % len(calls)]()
    once = _times(calls, 1, device)[0]
    count = min(MOST, max(LEAST, round(1e3 * seconds / max(once, 1e-3))))
    return statistics.median(_times(calls, count, device))


def graph_ms(calls: Sequence[Callable[[], object]], device: str = "cuda", seconds: float = 0.1) -> float:
    """Median milliseconds of a call, in a graph of all `calls`: launches cost no time. On a CPU without graph."""
    if device == "cpu":
        return rotating_ms(calls, device, seconds)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # compiles kernels and packs weights
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return median_ms(graph.replay, device, seconds) / len(calls)


def _times(calls: Sequence[Callable[[], object]], count: int, device: str) -> list[float]:
    if device == "cpu":
        marks = [time.perf_counter()]
        for number in range(count):
            calls[number % len(calls)]()
            marks.append(time.perf_counter())
        return [1e3 * (after - before) for before, after in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for number in range(count):
        calls[number % len(calls)]()
        events[number + 1].record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(events)]


def rotated(arguments: Any, device: str, most: int = 100_000) -> list[Any]:
    """Copies of the arguments, so many that together they exceed the GPU's last cache twice; two to `most`."""
    sizes: list[int] = []
    tree_map(lambda t: sizes.append(t.nbytes) if isinstance(t, Tensor) else None, arguments)
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device != "cpu" else 0
    copies = min(most, max(2, -(-2 * cache // max(1, sum(sizes)))))
    return [tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, arguments) for _ in range(copies)]


def driver_version() -> str:
    """Of the NVIDIA driver, or "" where it cannot be told."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(80)
        library.nvmlInit_v2()
        return text.value.decode() if library.nvmlSystemGetDriverVersion(text, len(text)) == 0 else ""
    except OSError:
        return ""


def clock_mhz(ordinal: int = 0) -> float:
    """Clock of the multiprocessors now, NaN where it cannot be told."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return float("nan")
    handle, clock = ctypes.c_void_p(), ctypes.c_uint()
    library.nvmlInit_v2()
    if library.nvmlDeviceGetHandleByIndex_v2(ordinal, ctypes.byref(handle)):
        return float("nan")
    wrong = library.nvmlDeviceGetClockInfo(handle, 1, ctypes.byref(clock))  # 1: NVML_CLOCK_SM
    return float("nan") if wrong else float(clock.value)


def peak_mb(call: Callable[[], object], device: str) -> float:
    """Megabytes allocated at most during a call beyond what was before; NaN on a CPU."""
    if device == "cpu":
        call()
        return float("nan")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def matrix_rate(dtype: torch.dtype, device: str, n: int = 8192) -> float:
    """FLOP/s of an n x n matrix product on random data: what the arithmetic of a row is a share of."""
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / (1e-3 * median_ms(lambda: a @ b, device))


def copy_rate(device: str, count: int = 2**28) -> float:
    """Bytes/s of a copy, read and written ones counted: what the traffic of a row is a share of."""
    source = torch.randn(count // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-3 * median_ms(lambda: target.copy_(source), device))
