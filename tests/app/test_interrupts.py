"""Signals are noted, not raised; a second Ctrl-C ends at once; afterwards all is as before."""

from __future__ import annotations

import signal
import threading

import pytest
from cli_files import default_signals

from swintormer.signals import ENDING, stoppable


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
