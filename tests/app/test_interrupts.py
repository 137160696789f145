"""Signals are noted, not raised; a second Ctrl-C ends at once; afterwards all is as before."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import nullcontext

import pytest
from cli_files import default_signals, files, photo

from swintormer.images import reading, writing
from swintormer.images.reading import read_image
from swintormer.images.writing import write_image
from swintormer.signals import ENDING, interruptible, stoppable


@pytest.mark.parametrize("number", ENDING)
def test_the_first_is_noted_and_the_second_interrupt_raises(number):
    with default_signals():
        before = [signal.getsignal(each) for each in ENDING]
        with stoppable() as caught:
            signal.raise_signal(number)
            assert caught == [number]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert [signal.getsignal(each) for each in ENDING] == before


def test_under_nohup_a_closing_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as caught:
            signal.raise_signal(signal.SIGHUP)
        assert caught == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_goes_without():
    seen = []

    def work():
        with stoppable() as caught:
            seen.append(caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("noted", [True, False])
def test_a_signal_ends_work_in_a_library(noted):
    cancelled = threading.Event()

    def work():
        interrupt()
        cancelled.wait()
        raise RuntimeError("what the library says when it is cancelled")

    with default_signals(), stoppable() if noted else nullcontext(), pytest.raises(KeyboardInterrupt):
        interruptible(work, cancelled.set)
    assert cancelled.is_set()


def test_work_that_cannot_be_cancelled_is_left_to_itself():
    ending = threading.Event()

    def work():
        interrupt()
        ending.wait()

    with default_signals(), stoppable(), pytest.raises(KeyboardInterrupt):
        interruptible(work, lambda: None, patience=0.01)
    ending.set()


def test_a_signal_before_the_work_is_the_business_of_others():
    with default_signals(), stoppable() as caught:
        interrupt()
        assert interruptible(lambda: 1, lambda: None) == 1
        assert caught == [signal.SIGINT]


def test_results_and_errors_of_interruptible_work():
    assert interruptible(lambda: 1, lambda: None) == 1
    with pytest.raises(TimeoutError, match="a disk far away"):
        interruptible(lambda: _fail(TimeoutError("a disk far away")), lambda: None)
    here: list[int] = []
    thread = threading.Thread(target=lambda: here.append(interruptible(threading.get_ident, lambda: None)))
    thread.start()
    thread.join()
    assert here == [thread.ident]


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("writes", [False, True])
def test_reading_and_writing_end_at_a_signal(tmp_path, monkeypatch, suffix, writes):
    """The signal arrives before libvips begins, so that the outcome depends on no time: libvips must then stop."""
    path, target = photo(tmp_path / f"in{suffix}", side=(300, 200)), tmp_path / "out" / f"out{suffix}"
    source, ended = read_image(path), []

    def at_once(work, cancel, patience=None):
        cancelled = threading.Event()

        def late():
            interrupt()
            cancelled.wait()
            try:
                return work()
            finally:
                ended.append(True)

        return interruptible(late, lambda: (cancel(), cancelled.set()), None)

    monkeypatch.setattr(writing if writes else reading, "interruptible", at_once)
    with default_signals(), stoppable(), pytest.raises(KeyboardInterrupt):
        write_image(target, source.pixels, source) if writes else read_image(path)
    assert ended == [True]
    assert files(tmp_path) == {path.name}
