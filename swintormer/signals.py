"""Signals that ask a program to end, kept until a moment at which it can end cleanly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# SIGHUP comes when the terminal or the connection closes; Windows has none.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """A list that SIGINT, SIGTERM and SIGHUP add their number to, for asking between steps; a second SIGINT raises.

    Raised at once, the first could land in a callback of libvips or in a clean-up, and be lost or leave a file behind.
    A SIGHUP that is ignored, as under nohup, stays ignored.
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
        pass  # not the main thread: signals are someone else's
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
