"""Signals that end a program, delayed until it can end cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# SIGHUP comes when the terminal or the connection closes; Windows has none.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_LOOK_EVERY = 0.1  # seconds
_noted: list[int] = []
"""Signals that `stoppable` has noted since the program began."""


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """A list to which SIGINT, SIGTERM and SIGHUP add their number, to be checked between steps.

    A second SIGINT raises KeyboardInterrupt. The first does not, because an exception could be raised in a callback of
    libvips, where it is lost, or in a clean-up, where it leaves a file behind. If SIGTERM or SIGHUP is ignored, as
    SIGHUP under nohup, it stays ignored.
    """
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        caught.append(number)
        _noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {}
    try:
        for number in ENDING:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    except ValueError:
        pass  # only the main thread can handle signals
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def exiting() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that incomplete files are removed; SIGINT raises KeyboardInterrupt.

    For work that has nothing worth saving in between, such as the making of caches.
    """

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {}
    try:
        for number in ENDING:
            if number == signal.SIGINT:  # also where a shell started the program in the background, with SIGINT ignored
                before[number] = signal.signal(number, signal.default_int_handler)
            elif signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, leave)
    except ValueError:
        pass  # only the main thread can handle signals
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(work: Callable[[], T], cancel: Callable[[], object], patience: float | None = None) -> T:
    """The result of `work`, which a signal interrupts; for long calls into a library, in which Python notices none.

    The work runs in a thread of its own. A signal that arrives meanwhile, noted by `stoppable` or raised, makes this
    call `cancel`, wait until the work has ended, and raise KeyboardInterrupt. In other threads than the main one, which
    alone receives signals, the work is simply done.

    Args:
        cancel: makes the work end soon, if the library can.
        patience: seconds to wait for that; then the work is left to itself, and its result is lost.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    before = len(_noted)
    result: Future[T] = Future()
    try:
        threading.Thread(target=_fulfil, args=(result, work), daemon=True).start()
        while not wait([result], timeout=_LOOK_EVERY).done:
            if len(_noted) > before:
                raise KeyboardInterrupt
    except BaseException:  # KeyboardInterrupt, or SystemExit of `exiting`
        cancel()
        wait([result], timeout=patience)
        raise
    return result.result()


def _fulfil(result: Future[T], work: Callable[[], T]) -> None:
    try:
        result.set_result(work())
    except BaseException as error:
        result.set_exception(error)
