"""Requests to end: signals that stop a run at once, later, or not at all."""

import contextlib
import os
import signal
import threading

import pytest

from vinfinity.errors import Stopped
from vinfinity.system.signals import SIGNALS, Shutdown


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    shutdown = Shutdown()
    with shutdown.handled(), shutdown.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.requested == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert shutdown.interrupted_again


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_stopped_with_the_current_message(number: signal.Signals) -> None:
    shutdown = Shutdown()
    shutdown.message = "stopped after step 3"
    with shutdown.handled(), pytest.raises(Stopped, match="stopped after step 3"):
        signal.raise_signal(number)
    assert shutdown.requested == number


def test_a_request_swallowed_by_other_code_is_raised_by_the_next_check() -> None:
    shutdown = Shutdown()
    shutdown.check()
    with shutdown.handled(), contextlib.suppress(Exception):
        signal.raise_signal(signal.SIGTERM)
    shutdown.message = "stopped after step 7"
    for _ in range(2):
        with pytest.raises(Stopped, match="stopped after step 7"):
            shutdown.check()


def test_a_deferred_request_is_raised_by_the_next_check() -> None:
    shutdown = Shutdown()
    with shutdown.handled():
        with shutdown.deferred():
            with shutdown.deferred():
                pass
            signal.raise_signal(signal.SIGUSR1)
            assert shutdown.requested == signal.SIGUSR1
        with pytest.raises(Stopped):
            shutdown.check()


def test_handlers_are_replaced_for_the_block_only() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Shutdown().handled():
        during = [signal.getsignal(number) for number in SIGNALS]
        assert all(one is not other for one, other in zip(during, before, strict=True))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_library_call_leaves_all_handlers_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Shutdown().handled(enabled=False) as shutdown:
        assert [signal.getsignal(number) for number in SIGNALS] == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert shutdown.requested is None


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Shutdown().handled() as shutdown:
            signal.raise_signal(signal.SIGUSR1)
        assert shutdown.requested is None
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_thread_other_than_the_main_one_takes_over_no_signals() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    during: list[object] = []

    def handle() -> None:
        with Shutdown().handled():
            during.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=handle)
    thread.start()
    thread.join()
    assert during == before
