"""Signs of life: each rank writes a line into the store every half second, and reads those of the others.

Transports differ in what they do if a rank hangs. gloo raises an error on the ranks next to it; NCCL's messages are
waited for on the GPU, where nothing raises, until its watchdog aborts the process. This thread does not depend on them:
it finds the rank that does not answer, and ends this one.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from vinfinity.errors import RankError, Stopped, VinfinityError, error_of
from vinfinity.parallel.devices import enter_device
from vinfinity.parallel.waits import Waits

# seconds between two lines, and between two looks at what is known
BEAT, LOOK = 0.5, 0.1
# seconds without a line after which a rank is gone: a thread of its own writes them, whatever the rank computes
SILENCE = 30.0
# seconds that the main thread has to end a rank before this thread does it, and that the store has to answer a rank
# that leaves
GRACE, FAREWELL = 0.7, 0.5
# the entry of the store with the first error of any rank
FIRST_ERROR = "first error"


@dataclass(frozen=True)
class Line:
    """A rank's sign of life. beat: counts its lines. waits_for: what it waits for from others, None if it does not.
    left: whether it is done, so that no more lines come.
    """

    beat: int
    waits_for: str | None = None
    left: bool = False


class Clock:
    """Seconds during which this process could run: while it is suspended, it cannot know what others do."""

    def __init__(self) -> None:
        self._last, self.seconds = time.monotonic(), 0.0

    def tick(self) -> None:
        """To be called every LOOK seconds or so."""
        now = time.monotonic()
        self.seconds += min(now - self._last, 10 * LOOK)
        self._last = now


class Judge:
    """Decides from the lines of all ranks which of them does not answer. Knows no threads and no store.

    timeout: seconds after which a rank counts as lost that others wait for. host: the rank that hosts the store, None
    if none does.
    """

    def __init__(self, rank: int, size: int, *, timeout: float, host: int | None = None) -> None:
        self.rank, self.timeout, self.host = rank, timeout, host
        self.lines: dict[int, Line] = {other: Line(0) for other in range(size)}
        # when each line changed, when the store last answered, and since when the GPU waits for the same messages
        self._changed = dict.fromkeys(range(size), 0.0)
        self._answered = 0.0
        self._stalled: tuple[str, float] | None = None

    @property
    def silence(self) -> float:
        """Seconds without a sign of life after which a rank counts as gone."""
        return min(self.timeout, SILENCE)

    def read(self, lines: Sequence[Line], *, now: float) -> None:
        """Note what the store says."""
        self._answered = now
        for rank, line in enumerate(lines):
            if line.beat != self.lines[rank].beat:
                self._changed[rank] = now
            self.lines[rank] = line

    def look(self, device_waits_for: str | None, *, now: float) -> RankError | None:
        """The error for a rank that does not answer. device_waits_for: what this rank's GPU waits for."""
        silent = now - self._answered > self.silence
        if silent and self.host is not None and self.host != self.rank:
            return self._late([self.host])
        if silent:
            # the store does not answer, and says nothing of any rank
            return None
        frozen = [
            rank
            for rank, line in self.lines.items()
            if rank != self.rank and not line.left and now - self._changed[rank] > self.silence
        ]
        if frozen:
            return self._late(frozen)
        if device_waits_for is None:
            self._stalled = None
        elif self._stalled is None or self._stalled[0] != device_waits_for:
            self._stalled = device_waits_for, now
        elif now - self._stalled[1] > self.timeout:
            return self._stall(device_waits_for)
        return None

    def _stall(self, label: str) -> RankError:
        """The error if this rank's GPU waits too long: for ranks that do not wait themselves, or for the transport."""
        busy = [
            rank
            for rank, line in self.lines.items()
            if rank != self.rank and not line.left and not line.waits_for
        ]
        if busy:
            return self._late(busy, label)
        return RankError(
            f"no messages arrive between the ranks (all wait for each other in: {label}); set NCCL_DEBUG=INFO to see"
            " why, and try NCCL_P2P_DISABLE=1"
        )

    def _late(self, ranks: Sequence[int], label: str = "") -> RankError:
        names = f"rank {ranks[0]}" if len(ranks) == 1 else f"the ranks {', '.join(map(str, ranks))}"
        waited = f" (waited for it in: {label})" if label else f" (no sign of life for {self.silence:g} s)"
        return RankError(f"{names} did not answer in time{waited}")


class Liveness:
    """The threads of one rank: one writes and reads lines, the other judges.

    judge: decides. store: a connection of its own, since one that waits is of no use to others. device: of this rank.
    end: reports an error and ends this process; called if the main thread has not left within GRACE seconds.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        store: dist.Store,
        device: torch.device,
        timeout: float,
        waits: Waits,
        end: Callable[[VinfinityError], object],
        host: int | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self._store, self._device, self._waits, self._end = store, device, waits, end
        self.judge, self._clock = Judge(rank, size, timeout=timeout, host=host), Clock()
        self._error: VinfinityError | None = None
        self._limit: tuple[float, RankError] | None = None
        self._done, self._beat, self._left = threading.Event(), 0, False
        self._write()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Show signs of life, and watch those of the others, until the block ends. All ranks must have been created."""
        exchange, watch = (
            threading.Thread(target=work, daemon=True) for work in (self._exchange, self._watch)
        )
        exchange.start()
        watch.start()
        try:
            yield
            self._left = True
        finally:
            self._done.set()
            exchange.join(FAREWELL)

    def check(self) -> None:
        """Raise the error of a rank that does not answer, or that another rank has left with."""
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def within(self, seconds: float, error: RankError) -> Iterator[None]:
        """End this rank with `error` if the block takes longer: for calls into libraries that know no limit."""
        self._limit = self._clock.seconds + seconds, error
        try:
            yield
        finally:
            self._limit = None

    def first_error(self, error: VinfinityError) -> VinfinityError:
        """Tell the others why this rank leaves. Returns the first error of any rank; this one if it is the first, or if
        the store does not answer.
        """
        found: list[bytes] = []
        entry = json.dumps([error.exit_code, error.message])

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                found.append(self._store.compare_set(FIRST_ERROR, "", entry))

        # a store that is suspended must not keep this rank
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(FAREWELL)
        return _decoded(found[0]) if found else error

    # ---- the threads ----

    def _exchange(self) -> None:
        """Writes this rank's line and reads the others'. Waits for the store, however long it takes."""
        enter_device(self._device)
        keys = [_key(rank) for rank in range(self.size)]
        while not self._done.wait(BEAT):
            try:
                self._write()
                lines = [Line(**json.loads(line)) for line in self._store.multi_get(keys)]
                self.judge.read(lines, now=self._clock.seconds)
                if self._error is None and self._store.check([FIRST_ERROR]):
                    error = _decoded(self._store.get(FIRST_ERROR))
                    # ranks that are asked to end do so together, each after its checkpoint
                    self._error = None if isinstance(error, Stopped) else error
            except (RuntimeError, ValueError):
                # the store is gone, and its host with it: the launcher or the transport says why
                continue
        if self._left:
            with contextlib.suppress(RuntimeError):
                self._write(left=True)

    def _watch(self) -> None:
        """Judges, and ends the process if the main thread does not."""
        enter_device(self._device)
        overdue = 0.0
        while not self._done.wait(LOOK):
            self._clock.tick()
            now = self._clock.seconds
            if self._limit is not None and now > self._limit[0]:
                self._error = self._error or self._published(self._limit[1])
            if self._error is None and (found := self.judge.look(self._device_waits_for(), now=now)):
                self._error = self._published(found)
            if self._error is not None:
                overdue = overdue or now + GRACE
                if now > overdue:
                    self._end(self._error)

    def _published(self, error: RankError) -> VinfinityError:
        first = self.first_error(error)
        return error if isinstance(first, Stopped) else first

    def _device_waits_for(self) -> str | None:
        try:
            return self._waits.device
        except RuntimeError:
            # the GPU has failed; the main thread meets the same error
            return None

    def _write(self, *, left: bool = False) -> None:
        self._beat += 1
        line = Line(self._beat, self._waits.host or self._device_waits_for(), left)
        self._store.set(_key(self.rank), json.dumps(asdict(line)))


def last_lines(store: dist.Store, size: int) -> list[Line]:
    """The last line of each rank that has written any; of the others a line that says nothing."""
    lines = [Line(0)] * size
    with contextlib.suppress(RuntimeError):
        for rank in range(size):
            if store.check([_key(rank)]):
                lines[rank] = Line(**json.loads(store.get(_key(rank))))
    return lines


def _key(rank: int) -> str:
    return f"alive/{rank}"


def _decoded(entry: bytes) -> VinfinityError:
    return error_of(*json.loads(entry))
