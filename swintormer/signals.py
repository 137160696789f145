"""Signals that end a program, delayed until it can end cleanly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# SIGHUP comes when the terminal or the connection closes; Windows has none.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


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
