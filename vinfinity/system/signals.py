"""Shutdown requests by signals, which no library code can swallow."""

import contextlib
import enum
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, Self

from vinfinity.errors import INTERRUPTED, Stopped

# the usual shutdown request, SLURM's warning before a time limit, Ctrl-C, a closed terminal
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# seconds after which a process that does not act on a request is ended
GRACE_SECONDS = 3.0
# seconds between two checks of whether a request was acted on
POLL_SECONDS = 0.02
# ends a line of progress and shows the cursor, which progress bars hide
RESTORE_TERMINAL = "\x1b[?25h\n"


class Reaction(enum.Enum):
    """How a process reacts to a shutdown request.

    EXIT: end at once, whatever the main thread is doing; nothing would be lost or left behind.
    UNWIND: raise KeyboardInterrupt, so that files and other processes are cleaned up.
    CHECK: raise Stopped in `check`.
    WAIT: raise Stopped in `check`, however long that takes; ending the process would lose work.

    With UNWIND and CHECK, a process that takes longer than GRACE_SECONDS is ended.
    """

    EXIT = enum.auto()
    UNWIND = enum.auto()
    CHECK = enum.auto()
    WAIT = enum.auto()


class Shutdown:
    """Whether a shutdown of this process was requested, and what happens then.

    A request is a state: `requested` holds the first signal and stays set. An exception from a signal handler may be
    lost in a library, or leave its locks held; so work calls `check` where it can end. A thread ends the process if the
    main thread does not act on a request, for instance because it waits for other ranks inside a library.

    A second Ctrl-C raises KeyboardInterrupt, whatever the reaction.

    message: what Stopped tells the user; it changes as work is saved. repeatable: whether a second Ctrl-C means more
    than the first; not in ranks of torchrun or srun, which may send a signal twice. report: called with exit code and
    message before the process is ended; by default it prints an error line.
    """

    def __init__(
        self, *, repeatable: bool = True, report: Callable[[int, str], object] | None = None
    ) -> None:
        self.requested: signal.Signals | None = None
        self.interrupted_again = False
        self.message = "stopped before anything was computed"
        self._repeatable, self._report = repeatable, report or _print_error
        self._requested_at, self._handled = 0.0, 0
        self._ending = threading.Lock()
        self.reaction = Reaction.EXIT

    @property
    def reaction(self) -> Reaction:
        """The reaction to a request from now on."""
        return self._reaction

    @reaction.setter
    def reaction(self, reaction: Reaction) -> None:
        self._reaction, self._reacts_since = reaction, time.monotonic()

    @contextlib.contextmanager
    def handled(self, *, enabled: bool = True, afterwards: signal.Handlers | None = None) -> Iterator[Self]:
        """Take over the shutdown signals until the block ends, except those that the process ignores.

        enabled: False leaves all signals as they are, as a library must. afterwards: the handler that the signals get
        at the end; None restores the previous ones.
        """
        # Python can set signal handlers only in the main thread
        if not enabled or threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[int, Any] = {
            name: handler for name in SIGNALS if (handler := signal.getsignal(name)) is not signal.SIG_IGN
        }
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        watcher = threading.Thread(target=self._watch, args=(reading, set(before)), daemon=True)
        watcher.start()
        # each signal is written to the pipe at once, even while the main thread is inside a library
        other = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for name in before:
            signal.signal(name, self._receive)
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler if afterwards is None else afterwards)
            signal.set_wakeup_fd(other)
            os.close(writing)
            watcher.join()
            os.close(reading)

    @contextlib.contextmanager
    def reacting(self, reaction: Reaction) -> Iterator[None]:
        """Set another reaction until the block ends; if the block raises, the reaction stays."""
        before, self.reaction = self.reaction, reaction
        yield
        self.reaction = before

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Run a block that calls `check` where it can end.

        After the block, a request changes nothing, unless the block is part of another such block.
        """
        inside = self.reaction is Reaction.CHECK
        self.reaction = Reaction.CHECK
        yield
        self.reaction = Reaction.CHECK if inside else Reaction.WAIT

    def check(self) -> None:
        """Raise Stopped if a shutdown was requested."""
        if self.requested is not None:
            self.stop()

    def stop(self) -> NoReturn:
        """Raise Stopped: from here on the process ends by itself."""
        self.reaction = Reaction.WAIT
        raise Stopped(self.message)

    def outcome(self) -> tuple[int, str]:
        """Return exit code and message of a process that a request ends other than by `check`."""
        working = self.reaction in (Reaction.CHECK, Reaction.WAIT)
        if self.interrupted_again or (self.requested in (None, signal.SIGINT) and not working):
            return INTERRUPTED, "interrupted"
        return Stopped.exit_code, "stopped" if self.reaction is Reaction.UNWIND else self.message

    def _receive(self, number: int, _: FrameType | None) -> None:
        """Handle a signal. Runs in the main thread, between two of its instructions."""
        self._handled += 1
        self._request(number)
        if self._is_again(number, self._handled):
            self.interrupted_again = True
            raise KeyboardInterrupt
        if self.reaction is Reaction.EXIT:
            self._end()
        if self._handled == 1 and self.reaction is Reaction.UNWIND:
            raise KeyboardInterrupt

    def _watch(self, reading: int, numbers: set[int]) -> None:
        """Note requests, and end the process if the main thread does not act on them. Runs in a thread.

        It returns when the pipe is closed.
        """
        seen, again_at = 0, math.inf
        while True:
            ready, _, _ = select.select([reading], [], [], None if self.requested is None else POLL_SECONDS)
            if ready:
                received = os.read(reading, 64)
                if not received:
                    return
                for number in received:
                    if number in numbers:
                        seen += 1
                        self._request(number)
                        if self._is_again(number, seen):
                            again_at = min(again_at, time.monotonic())
            if time.monotonic() - again_at > GRACE_SECONDS:
                self.interrupted_again = True
                self._end()
            if self.requested is not None and self._overdue():
                self._end()

    def _request(self, number: int) -> None:
        if self.requested is None:
            self._requested_at = time.monotonic()
            self.requested = signal.Signals(number)

    def _is_again(self, number: int, count: int) -> bool:
        """Return whether a signal, the `count`-th so far, is a second Ctrl-C."""
        return self._repeatable and count > 1 and number == signal.SIGINT

    def _overdue(self) -> bool:
        """Return whether the main thread has had its time to act on a request."""
        if self.reaction is Reaction.WAIT:
            return False
        since = max(self._requested_at, self._reacts_since)
        return self.reaction is Reaction.EXIT or time.monotonic() - since > GRACE_SECONDS

    def _end(self) -> NoReturn:
        self.end(*self.outcome())

    def end(self, code: int, message: str) -> NoReturn:
        """End the process at once, from a handler or a thread, whatever the main thread is doing."""
        # never released: of several callers, only the first continues
        self._ending.acquire()
        with contextlib.suppress(OSError):
            self._report(code, message)
        os._exit(code)


def _print_error(_: int, message: str) -> None:
    # not through sys.stderr, which the main thread may be using
    restore = RESTORE_TERMINAL if os.isatty(2) else ""
    os.write(2, f"{restore}error: {message}\n".encode())
