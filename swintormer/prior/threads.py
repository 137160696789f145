"""The networks of a prior on the CPU's threads: a piece of the image for each thread, or one after the other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from typing import TypeAlias, TypeVar

import torch

from swintormer_kernels import use_backend
from swintormer_kernels.registry import asked_backend

T = TypeVar("T")
R = TypeVar("R")
Each: TypeAlias = Callable[[Callable[[T], R], Iterable[T]], Iterable[R]]
"""(function, arguments) -> results in order."""

_STARTING = threading.Lock()


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[Each]:
    """A `map` whose calls each compute on one of torch's threads, without gradients and without autocast.

    On a CPU each call runs on one of torch's threads, and as many calls at once as torch has threads here; elsewhere
    one after the other.
    """
    with _STARTING:  # a thread's first question is answered with what holds for the process then
        count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        yield partial(in_turn, device.type)
        return
    pool = _started(count)
    try:
        yield partial(_on_threads, pool)
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt the pieces that wait are not begun


def _started(count: int) -> ThreadPoolExecutor:
    """That many threads of one torch thread each.

    torch.set_num_threads sets the calling thread's count and the one that later threads of the process begin with. So
    all start now, and then the second is put back; the caller's own never changes. One caller at a time does this, or
    one would put back what the other had set. A thread of somebody else's that first asks torch within that millisecond
    keeps a count of one: torch has no way to set it for one thread only.
    """
    with _STARTING:
        everybody = threading.Barrier(count)
        pool = ThreadPoolExecutor(count, initializer=_take_one_thread)
        try:
            list(pool.map(lambda _: everybody.wait(), range(count)))
        except BaseException:  # a thread that could not start would leave the others waiting
            everybody.abort()
            pool.shutdown(wait=False)
            raise
        finally:
            torch.set_num_threads(count)
    return pool


def _take_one_thread() -> None:
    torch.set_num_threads(1)
    # A thread's own count is fixed by its first question. Asked later, it would be the process's count, put back then.
    torch.get_num_threads()


def _call(function: Callable[[T], R], device: str, backend: str | None, argument: T) -> R:
    with (
        torch.inference_mode(),
        torch.autocast(device, enabled=False),
        nullcontext() if backend is None else use_backend(backend),
    ):
        return function(argument)


def in_turn(device: str, function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
    for argument in arguments:
        yield _call(function, device, None, argument)


def _on_threads(pool: ThreadPoolExecutor, function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
    call = partial(_call, function, "cpu", asked_backend())
    futures = deque(pool.submit(copy_context().run, call, argument) for argument in arguments)
    while futures:
        yield futures.popleft().result()  # and nothing keeps it here
