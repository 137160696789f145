"""Scratch of the cpu backend's ops: kept, bounded, one for each thread, poisoned in tests; steps take no pages."""

from __future__ import annotations

import functools
import itertools
import os
import resource
import statistics
import subprocess
import sys
import threading

import pytest
import torch

import swintormer_kernels as sk
from swintormer_kernels.backends.cpu import scratch
from swintormer_kernels.backends.cpu.scratch import Scratch, times_grown
from swintormer_kernels.ops import group_norm_silu, norm_projection, norm_silu_conv3x3, res_block, upsample_conv3x3
from swintormer_kernels.testing.cases import cases_of

OPS = [group_norm_silu, norm_projection, norm_silu_conv3x3, upsample_conv3x3, res_block]
FLOAT = torch.finfo(torch.float32).bits // 8


@pytest.fixture(autouse=True)
def own_scratch():
    scratch.release_scratch()
    yield
    scratch.release_scratch()


def calls():
    """One call of every op in a layout that needs no copy."""
    wanted = {
        "group_norm_silu": "32x32x32, channels_last",
        "norm_silu_conv3x3": "32 to 32, 32x32",
        "res_block": "96 to 32, 32x32",
    }
    for module in OPS:
        name = wanted.get(module.OP.name, "64, 16x16")
        case = next(case for case in cases_of(module.OP.name) if case.name == name)
        args, kwargs = case.make(0)
        yield functools.partial(getattr(module, module.OP.name), *args, **kwargs)


def test_only_the_first_step_takes_scratch(extension):
    step = list(calls())
    with torch.no_grad(), sk.use_backend("cpu"):
        first = [call() for call in step]
        grown = times_grown()
        assert grown > 0
        for _ in range(3):
            again = [call() for call in step]
        assert times_grown() == grown
        assert scratch.release_scratch() > 0
        assert scratch.release_scratch() == 0
        for call in step:
            call()
        assert times_grown() > grown
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("module", OPS, ids=lambda module: module.OP.name)
def test_a_call_allocates_its_result_and_nothing_else(module, extension):
    call = list(calls())[OPS.index(module)]
    with torch.no_grad(), sk.use_backend("cpu"):
        result = call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert sum(event.nbytes() for event in events if event.nbytes() > 0) == FLOAT * result.numel()


def test_pieces_are_aligned_and_apart():
    pieces = Scratch(5, 0, 33, 16)
    addresses = [address for address, _, _ in pieces.buffers]
    assert all(address % 64 == 0 for address in addresses)
    sizes = (5, 0, 33, 16)
    for address, size, after in zip(addresses, sizes, addresses[1:], strict=False):
        assert address + FLOAT * size <= after
    memory = pieces.buffers[0][2]
    end = memory.data_ptr() + FLOAT * memory.numel()
    assert memory.data_ptr() <= addresses[0]
    assert addresses[-1] + FLOAT * sizes[-1] <= end


def test_it_is_full_of_nan_in_every_call_of_a_test():
    for _ in range(2):
        pieces = Scratch(100)
        assert pieces.buffers[0][2][:100].isnan().all()
        pieces.buffers[0][2].zero_()


def test_more_than_the_bound_is_not_kept(monkeypatch):
    monkeypatch.setattr(scratch, "MOST_FLOATS", 1000)
    Scratch(100)
    Scratch(2000)
    assert 0 < scratch.release_scratch() <= FLOAT * 1000


def test_threads_share_none_and_leave_none(extension):
    """Two threads compute at once, each in its own scratch; what one kept is gone with it."""
    (_, _, call, *_), expected, found, pieces = list(calls()), [], [], []
    with torch.no_grad(), sk.use_backend("cpu"):
        expected.append(call())

    def run():
        torch.set_num_threads(1)
        with torch.no_grad(), sk.use_backend("cpu"):
            found.append([call() for _ in range(20)][-1])
        pieces.append(scratch._kept.memory.untyped_storage()._weak_ref())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(value, expected[0]) for value in found)
    assert len(set(pieces)) == 2
    assert all(torch.UntypedStorage._expired(piece) for piece in pieces)
    assert scratch.release_scratch() > 0, "this thread's own is still there"


# A ResNet block and upsampling, whose results are held together and freed.
_STEPS = """
import resource, torch
import swintormer_kernels as sk
from swintormer_kernels.backends.cpu import scratch
kept = scratch.keep_freed_memory()
torch.set_num_threads(1)
x = torch.randn(1, 64, 64, 64).contiguous(memory_format=torch.channels_last)
weight = torch.randn(64, 64, 3, 3) / 24
conv, up = sk.ConvWeights(weight, skip=x), sk.UpsampleWeights(weight)
def step():
    y = sk.norm_silu_conv3x3(x, sk.GroupNormWeights(), conv, 8)
    return [sk.upsample_conv3x3(sk.norm_silu_conv3x3(y, sk.GroupNormWeights(), conv, 8), up) for _ in range(8)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with torch.inference_mode(), sk.use_backend("cpu"):
    counts = [faults()]
    for _ in range(30):
        step()
        counts.append(faults())
    print(int(kept), *counts)
"""

# glibc's own first thresholds, from which it then moves unless they are asked for: every large block comes and goes.
_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def test_no_step_after_the_first_takes_memory_from_the_operating_system(extension):
    """Most steps have fewer page faults than the smallest result, 64 x 64 x 64 floats, has pages.

    Most, because now and then small objects break up a piece of the heap, and the next result takes another.
    """
    run = [sys.executable, "-c", _STEPS]
    done = subprocess.run(run, env={**os.environ, **_GIVES_BACK}, capture_output=True, text=True, check=True)
    kept, *counts = map(int, done.stdout.split())
    if not kept:
        pytest.skip("the allocator is not glibc's")
    faults = [after - before for before, after in itertools.pairwise(counts)]
    assert statistics.median(faults[1:]) < 64**3 * FLOAT / resource.getpagesize(), faults


def test_bytes_to_keep_must_be_some():
    with pytest.raises(ValueError, match="most must be at least 131072 bytes, found 131071"):
        scratch.keep_freed_memory(131071)
