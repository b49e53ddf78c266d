"""Heartbeats: each rank writes one into the store every half second, and reads those of the others.

Transports behave differently when a rank hangs. gloo raises an error on the ranks that exchange messages with it. With
NCCL, the GPU waits for the messages and nothing raises until NCCL's watchdog aborts the process. Heartbeats do not
depend on the transport: they show which rank does not answer, and the others end with an error that names it.
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
from vinfinity.parallel.backends import CONNECTION_REMEDIES
from vinfinity.parallel.devices import enter_device
from vinfinity.parallel.place import rank_names
from vinfinity.parallel.waits import Waits

# seconds between two heartbeats, and between two checks of what they say
BEAT_SECONDS, CHECK_SECONDS = 0.5, 0.1
# seconds without a heartbeat after which a rank is gone; they come from a thread that runs whatever the rank computes
SILENCE_SECONDS = 30.0
# seconds that the main thread has to end the process before the monitoring thread does it, and that the store has to
# answer a rank that leaves
GRACE_SECONDS, STORE_SECONDS = 0.7, 0.5
# the store's entry for the first error of any rank
FIRST_ERROR = "first error"


@dataclass(frozen=True)
class Heartbeat:
    """A sign that a rank is alive.

    beat: counts the rank's heartbeats. waits_for: the operation in which it waits for other ranks; None if it does not
    wait. left: whether the rank is done, and sends no more heartbeats.
    """

    beat: int
    waits_for: str | None = None
    left: bool = False


class Clock:
    """Counts the seconds during which this process could run. While it is suspended, it cannot hear the others."""

    def __init__(self) -> None:
        self._last, self.seconds = time.monotonic(), 0.0

    def tick(self) -> None:
        """Add the time since the last call. Call it about every CHECK_SECONDS seconds."""
        now = time.monotonic()
        self.seconds += min(now - self._last, 10 * CHECK_SECONDS)
        self._last = now


class HeartbeatMonitor:
    """Decides from the heartbeats of all ranks which of them does not answer. Pure logic, without threads or a store.

    timeout: seconds for which others wait for a rank before it counts as lost. host: the rank that hosts the store;
    None if the launcher does.
    """

    def __init__(self, rank: int, size: int, *, timeout: float, host: int | None = None) -> None:
        self.rank, self.timeout, self.host = rank, timeout, host
        self.heartbeats: dict[int, Heartbeat] = {other: Heartbeat(0) for other in range(size)}
        # when each rank was last heard, when the store last answered, and since when the GPU waits in one operation
        self._heard = dict.fromkeys(range(size), 0.0)
        self._store_answered = 0.0
        self._waiting: tuple[str, float] | None = None

    @property
    def silence_limit(self) -> float:
        """Seconds without a heartbeat after which a rank counts as gone."""
        return min(self.timeout, SILENCE_SECONDS)

    def update(self, heartbeats: Sequence[Heartbeat], *, now: float) -> None:
        """Record the heartbeats that the store holds."""
        self._store_answered = now
        for rank, heartbeat in enumerate(heartbeats):
            if heartbeat.beat != self.heartbeats[rank].beat:
                self._heard[rank] = now
            self.heartbeats[rank] = heartbeat

    def find_lost_rank(self, device_waits_for: str | None, *, now: float) -> RankError | None:
        """Return the error for a rank that does not answer, or None.

        device_waits_for: the operation in which this rank's GPU waits.
        """
        silent = now - self._store_answered > self.silence_limit
        if silent and self.host is not None and self.host != self.rank:
            return self._lost_error([self.host])
        if silent:
            # without the store, nothing is known about any rank
            return None
        frozen = [
            rank
            for rank, heartbeat in self.heartbeats.items()
            if rank != self.rank and not heartbeat.left and now - self._heard[rank] > self.silence_limit
        ]
        if frozen:
            return self._lost_error(frozen)
        if device_waits_for is None:
            self._waiting = None
        elif self._waiting is None or self._waiting[0] != device_waits_for:
            self._waiting = device_waits_for, now
        elif now - self._waiting[1] > self.timeout:
            return self._waiting_error(device_waits_for)
        return None

    def _waiting_error(self, label: str) -> RankError:
        """Blame the ranks that do not wait themselves if this rank's GPU waits too long; without any, the transport."""
        busy = [
            rank
            for rank, heartbeat in self.heartbeats.items()
            if rank != self.rank and not heartbeat.left and not heartbeat.waits_for
        ]
        if busy:
            return self._lost_error(busy, label)
        return RankError(
            f"no messages arrive between the ranks (all wait for each other in: {label}); {CONNECTION_REMEDIES['cuda']}"
        )

    def _lost_error(self, ranks: Sequence[int], label: str = "") -> RankError:
        waited = f" (waited for it in: {label})" if label else f" (no heartbeat for {self.silence_limit:g} s)"
        return RankError(f"{rank_names(ranks)} did not answer in time{waited}")


class Liveness:
    """Two threads of a rank: one exchanges heartbeats with the other ranks, one checks them.

    store: a connection of its own, since a call that waits blocks its connection. device: this rank's device.
    end: reports an error and ends this process; called if the main thread has not left within GRACE_SECONDS.
    host: see HeartbeatMonitor.
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
        self.monitor, self._clock = HeartbeatMonitor(rank, size, timeout=timeout, host=host), Clock()
        self._error: VinfinityError | None = None
        self._limit: tuple[float, RankError] | None = None
        self._done, self._beat, self._left = threading.Event(), 0, False
        self._write()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Send heartbeats and monitor those of the others until the block ends. Every rank must have a Liveness."""
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
            exchange.join(STORE_SECONDS)

    def check(self) -> None:
        """Raise the error for a rank that does not answer, or the error with which another rank has left."""
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def within(self, seconds: float, error: RankError) -> Iterator[None]:
        """End this rank with `error` if the block takes longer than that, for library calls without a time limit."""
        self._limit = self._clock.seconds + seconds, error
        try:
            yield
        finally:
            self._limit = None

    def first_error(self, error: VinfinityError) -> VinfinityError:
        """Tell the others why this rank leaves, and return the first error of any rank.

        That is `error` itself if it is the first, or if the store does not answer.
        """
        found: list[bytes] = []
        entry = json.dumps([error.exit_code, error.message])

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                found.append(self._store.compare_set(FIRST_ERROR, "", entry))

        # a suspended store must not hold up this rank
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(STORE_SECONDS)
        return _decoded(found[0]) if found else error

    # ---- the threads ----

    def _exchange(self) -> None:
        """Write this rank's heartbeat and read the others', in a loop. Waits for the store, however long it takes."""
        enter_device(self._device)
        keys = [_key(rank) for rank in range(self.size)]
        while not self._done.wait(BEAT_SECONDS):
            try:
                self._write()
                heartbeats = [Heartbeat(**json.loads(entry)) for entry in self._store.multi_get(keys)]
                self.monitor.update(heartbeats, now=self._clock.seconds)
                if self._error is None and self._store.check([FIRST_ERROR]):
                    error = _decoded(self._store.get(FIRST_ERROR))
                    # on a shutdown request, ranks stop together, after a checkpoint
                    self._error = None if isinstance(error, Stopped) else error
            except (RuntimeError, ValueError):
                # the store is gone, and its host with it: the launcher or the transport says why
                continue
        if self._left:
            with contextlib.suppress(RuntimeError):
                self._write(left=True)

    def _watch(self) -> None:
        """Look for lost ranks, and end the process if the main thread does not."""
        enter_device(self._device)
        overdue = 0.0
        while not self._done.wait(CHECK_SECONDS):
            self._clock.tick()
            now = self._clock.seconds
            if self._limit is not None and now > self._limit[0]:
                self._error = self._error or self._published(self._limit[1])
            if self._error is None and (
                found := self.monitor.find_lost_rank(self._device_waits_for(), now=now)
            ):
                self._error = self._published(found)
            if self._error is not None:
                overdue = overdue or now + GRACE_SECONDS
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
        heartbeat = Heartbeat(self._beat, self._waits.host or self._device_waits_for(), left)
        self._store.set(_key(self.rank), json.dumps(asdict(heartbeat)))


def last_heartbeats(store: dist.Store, size: int) -> list[Heartbeat]:
    """Return the last heartbeat of each rank; an empty one for ranks that have not sent any."""
    heartbeats = [Heartbeat(0)] * size
    with contextlib.suppress(RuntimeError):
        for rank in range(size):
            if store.check([_key(rank)]):
                heartbeats[rank] = Heartbeat(**json.loads(store.get(_key(rank))))
    return heartbeats


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"


def _decoded(entry: bytes) -> VinfinityError:
    return error_of(*json.loads(entry))
