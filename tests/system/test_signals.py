"""Requests to end: what a process does when it gets a shutdown signal."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from oracles.processes import no_thread_left

from vinfinity.errors import Stopped
from vinfinity.system.signals import SIGNALS, Reaction, Shutdown


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_raises_stopped_with_the_current_message_at_each_check(number: signal.Signals) -> None:
    shutdown = Shutdown()
    with shutdown.handled(), shutdown.checked():
        shutdown.check()
        signal.raise_signal(number)
        for message in ("stopped after step 3", "stopped after step 7"):
            shutdown.message = message
            with pytest.raises(Stopped, match=message):
                shutdown.check()
    assert shutdown.requested == number


def test_a_part_of_checked_work_leaves_the_rest_checked() -> None:
    shutdown = Shutdown()
    with shutdown.checked():
        with shutdown.checked():
            pass
        after_the_part = shutdown.reaction
    assert (after_the_part, shutdown.reaction) == (Reaction.CHECK, Reaction.WAIT)


def test_a_second_ctrl_c_interrupts_whatever_the_process_waits_for() -> None:
    shutdown = Shutdown()
    with shutdown.handled():
        shutdown.reaction = Reaction.WAIT
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.requested == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert shutdown.outcome() == (130, "interrupted")


def test_a_launcher_may_send_ctrl_c_twice() -> None:
    shutdown = Shutdown(repeatable=False)
    with shutdown.handled():
        shutdown.reaction = Reaction.WAIT
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert not shutdown.interrupted_again


def test_work_without_checks_is_interrupted_so_that_it_cleans_up() -> None:
    shutdown = Shutdown()
    with shutdown.handled():
        shutdown.reaction = Reaction.UNWIND
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert shutdown.outcome() == (75, "stopped")


def test_handlers_are_replaced_for_the_block_only() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with no_thread_left(), Shutdown().handled():
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
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Shutdown().handled() as shutdown:
            signal.raise_signal(signal.SIGHUP)
        assert shutdown.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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


# ---- the thread that ends the process ----

PROGRAM = """
import ctypes, os, signal, sys
from vinfinity.system.signals import Reaction, Shutdown

with Shutdown().handled() as shutdown:
    shutdown.reaction = Reaction[sys.argv[1]]
    for name in sys.argv[2:]:
        try:
            os.kill(os.getpid(), signal.Signals[name])
        except BaseException:
            # as code of others might
            pass
    # the main thread is busy in a library, where no Python handler runs
    ctypes.CDLL(None).sleep(20)
"""


@pytest.mark.parametrize(
    ("reaction", "signals", "code", "line"),
    [
        ("EXIT", ["SIGINT"], 130, "error: interrupted"),
        ("EXIT", ["SIGHUP"], 75, "error: stopped before anything was computed"),
        ("UNWIND", ["SIGINT"], 130, "error: interrupted"),
        ("CHECK", ["SIGINT"], 75, "error: stopped before anything was computed"),
        ("WAIT", ["SIGTERM", "SIGINT"], 130, "error: interrupted"),
    ],
)
def test_a_request_that_is_not_acted_on_ends_the_process(
    reaction: str, signals: list[str], code: int, line: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, reaction, *signals], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()) == (code, [line])


def test_a_request_waits_where_work_would_be_lost() -> None:
    program = PROGRAM.replace("20", "4") + "print('done')"
    done = subprocess.run(
        [sys.executable, "-c", program, "WAIT", "SIGTERM"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_swallowed_exception_leaves_the_request() -> None:
    shutdown = Shutdown()
    with shutdown.handled():
        shutdown.reaction = Reaction.UNWIND
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            shutdown.check()
