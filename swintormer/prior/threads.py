"""Run a prior's networks on pieces of an image: a piece for each CPU thread, or one piece after the other."""

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
    with _STARTING:  # a new thread's count is the process's count at its first query, which `_started` changes
        count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        yield partial(in_turn, device.type)
        return
    pool = _started(count)
    try:
        yield partial(_on_threads, pool)
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt, waiting pieces are not started


def _started(count: int) -> ThreadPoolExecutor:
    """A pool of `count` threads that each compute on one torch thread.

    torch.set_num_threads sets the count of the calling thread and the initial count of later threads. Therefore all
    threads start here, and then the initial count is restored; the caller's own count never changes. The lock keeps
    two callers from restoring each other's value. A foreign thread that first queries torch within this millisecond
    keeps a count of one: torch cannot set the count for one thread only.
    """
    with _STARTING:
        everybody = threading.Barrier(count)
        pool = ThreadPoolExecutor(count, initializer=_take_one_thread)
        try:
            list(pool.map(lambda _: everybody.wait(), range(count)))
        except BaseException:  # if a thread cannot start, the others must not wait for it
            everybody.abort()
            pool.shutdown(wait=False)
            raise
        finally:
            torch.set_num_threads(count)
    return pool


def _take_one_thread() -> None:
    torch.set_num_threads(1)
    # Torch fixes a thread's count at its first query. A later query would give the process's count, restored by then.
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
        yield futures.popleft().result()  # no reference to the result is kept here
