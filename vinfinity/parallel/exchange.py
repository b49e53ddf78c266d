"""How ranks exchange frames and statistics while a temporal layer runs.

An exchange starts and finishes separately: a layer calls `fetch`, computes whatever does not depend on the result,
then waits. Everything that a layer needs at once (neighbours, anchors, statistics of the norm) travels in one message
per peer.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from vinfinity.errors import RankError
from vinfinity.parallel.place import rank_names
from vinfinity.parallel.shards import FrameShards, Route
from vinfinity.parallel.waits import Waits
from vinfinity.system.out_of_memory import is_out_of_memory
from vinfinity.system.transfer import to_device


@dataclass(frozen=True)
class Fetched:
    """What an exchange brings from other ranks.

    frames: (b, len(route.wanted), ...), the requested frames, in the order of `route.wanted`.
    sums: (b, scenes·groups, 5) fp64, the statistics summed over the frames of all ranks; None without statistics.
    """

    frames: Tensor
    sums: Tensor | None


@dataclass
class Counters:
    """Traffic of this rank so far: how often it waited, and how many messages and bytes it sent."""

    waits: int = 0
    messages: int = 0
    bytes: int = 0

    def add(self, sent: Mapping[int, int], received: Mapping[int, int]) -> None:
        """Count one exchange. sent, received: bytes to and from each peer."""
        self.waits += bool(sent or received)
        self.messages += len(sent)
        self.bytes += sum(sent.values())

    def per(self, steps: int) -> dict[str, float]:
        """Return the averages per denoising step."""
        return {name: value / steps for name, value in dataclasses.asdict(self).items()}


class Work(Protocol):
    """Messages in flight, as in torch.distributed."""

    def wait(self, timeout: timedelta = ..., /) -> object: ...


class Pending(Protocol):
    """An exchange in flight."""

    def wait(self) -> Fetched:
        """Wait for the messages; return what they brought. Further calls return the same result.

        On a GPU, the current stream waits instead of the host, and a lost rank shows up in `Ranks.wait_for`. On a CPU,
        raises RankError if a rank is late or gone.
        """
        ...


class FrameExchange(Protocol):
    """How temporal layers get frames and statistics of other ranks."""

    counters: Counters

    def fetch(self, x: Tensor, route: Route, *, sums: Tensor | None = None, label: str = "") -> Pending:
        """Start to fetch the frames that `route` names, and send this rank's frames to the ranks that want them.

        Does not wait: call `wait` on the result. All ranks must make the same calls in the same order.

        x: (b, f, ...), this rank's frames. sums: (b, scenes·groups, 5) fp64, statistics of x, which are summed over all
        ranks. label: names the operation in errors, heartbeats and plans. Raises RankError if a rank is late or gone;
        running out of memory raises the device's own error.
        """
        ...


@dataclass(frozen=True)
class Done:
    """An exchange that is complete from the start."""

    fetched: Fetched

    def wait(self) -> Fetched:
        return self.fetched


class LocalExchange:
    """The exchange of a single rank: it holds every frame, so the sums are its own. Routes must be empty."""

    def __init__(self) -> None:
        self.counters = Counters()

    def fetch(self, x: Tensor, route: Route, *, sums: Tensor | None = None, label: str = "") -> Pending:
        assert not route.wanted and not route.sends
        return Done(Fetched(frames=x[:, :0], sums=sums))


def message_sizes(
    x: Tensor, route: Route, others: Sequence[int], *, sums: Tensor | None
) -> tuple[dict[int, int], dict[int, int]]:
    """Return the bytes of the messages to and from each peer, ascending by peer, without peers that get no message.

    Statistics go to every peer, in the same message as the frames that it wants.
    """
    statistics = 0 if sums is None else sums.nbytes
    frame = x.shape[0] * x[0, 0].numel() * x.element_size()
    sends = {peer: len(frames) for peer, frames in route.sends}
    receives = {peer: stop - start for peer, start, stop in route.receives}
    sent, received = (
        {
            peer: statistics + counts.get(peer, 0) * frame
            for peer in (others if statistics else sorted(counts))
        }
        for counts in (sends, receives)
    )
    return sent, received


class RankExchange:
    """The exchange of one rank among several: one message to each peer that needs one, by batched point-to-point.

    rank, shards: this rank, and the frames of each rank. peers: maps the ranks of a route to processes; by default they
    are the same. counters: traffic counters to add to. waits: records which operation waits. The process group must
    exist; its timeout bounds each wait on a CPU.
    """

    def __init__(
        self,
        rank: int,
        shards: FrameShards,
        *,
        peers: Sequence[int] | None = None,
        counters: Counters | None = None,
        waits: Waits | None = None,
    ) -> None:
        self.rank = rank
        self.counters = counters or Counters()
        self.waits = waits or Waits()
        self.peers = peers or range(shards.ranks)
        self._others = [peer for peer in range(shards.ranks) if peer != rank]
        self._rows: dict[tuple[int, ...], Tensor] = {}

    def fetch(self, x: Tensor, route: Route, *, sums: Tensor | None = None, label: str = "") -> Pending:
        sent, received = message_sizes(x, route, self._others, sums=sums)
        self.counters.add(sent, received)
        if not sent and not received:
            return Done(Fetched(frames=x[:, :0], sums=None))

        wanted_by = dict(route.sends)
        statistics = [] if sums is None else [sums]
        leaving = {}
        for peer in sent:
            frames = [x.index_select(1, self._row(wanted_by[peer], x.device))] if peer in wanted_by else []
            leaving[peer] = _pack([*statistics, *frames])
        arriving = {
            peer: torch.empty(size, dtype=torch.uint8, device=x.device) for peer, size in received.items()
        }
        works, operations = self._start(leaving, arriving, label)
        counts = {peer: stop - start for peer, start, stop in route.receives}
        return _Arriving(self, works, operations, arriving, x, sums, counts, label)

    def _start(
        self, leaving: Mapping[int, Tensor], arriving: Mapping[int, Tensor], label: str
    ) -> tuple[Sequence[Work], Sequence[dist.P2POp]]:
        """Start to send a message to each peer and to receive one from each."""
        operations = [dist.P2POp(dist.isend, message, self.peers[peer]) for peer, message in leaving.items()]
        operations += [
            dist.P2POp(dist.irecv, message, self.peers[peer]) for peer, message in arriving.items()
        ]
        with named_peers(label, *sorted({operation.peer for operation in operations})):
            return dist.batch_isend_irecv(operations), operations

    def _row(self, frames: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the positions as an index tensor on the device, created once."""
        if frames not in self._rows:
            self._rows[frames] = to_device(torch.tensor(frames, dtype=torch.int64), device)
        return self._rows[frames]


class TracedExchange(RankExchange):
    """The exchange of one rank among imaginary ones, for plans and rehearsals.

    It creates and counts the messages of RankExchange, but sends none. What arrives is undefined.
    by_label: bytes sent, by label. largest: the most bytes of one exchange, to and from all peers.
    """

    def __init__(self, rank: int, shards: FrameShards) -> None:
        super().__init__(rank, shards)
        self.by_label: dict[str, int] = {}
        self.largest = 0

    def fetch(self, x: Tensor, route: Route, *, sums: Tensor | None = None, label: str = "") -> Pending:
        before = self.counters.bytes
        pending = super().fetch(x, route, sums=sums, label=label)
        self.by_label[label] = self.by_label.get(label, 0) + self.counters.bytes - before
        return pending

    def _start(
        self, leaving: Mapping[int, Tensor], arriving: Mapping[int, Tensor], label: str
    ) -> tuple[Sequence[Work], Sequence[dist.P2POp]]:
        messages = [*leaving.values(), *arriving.values()]
        self.largest = max(self.largest, sum(message.nbytes for message in messages))
        return [_Traced(messages)], ()


@dataclass(frozen=True)
class _Traced:
    """Keeps messages in memory for as long as real ones would be in flight."""

    messages: Sequence[Tensor]

    def wait(self, timeout: timedelta = timedelta(0), /) -> None:
        """Return at once, since nothing is in flight."""


@dataclass
class _Arriving:
    """The messages of one `fetch` in flight.

    works, operations: the transport's handles. arriving: the buffer for the message of each peer. x, sums: this rank's
    input. counts: how many frames come from each peer.
    """

    exchange: RankExchange
    works: Sequence[Work]
    operations: Sequence[dist.P2POp]
    arriving: dict[int, Tensor]
    x: Tensor
    sums: Tensor | None
    counts: dict[int, int]
    label: str
    fetched: Fetched | None = None

    def wait(self) -> Fetched:
        if self.fetched is None:
            self._finish()
            self.fetched = self._unpack()
        return self.fetched

    def _unpack(self) -> Fetched:
        b, shape = self.x.shape[0], self.x.shape[2:]
        frames, gathered = [], {self.exchange.rank: self.sums}
        for peer, message in self.arriving.items():
            offset = 0
            if self.sums is not None:
                offset = self.sums.nbytes
                gathered[peer] = message[:offset].view(self.sums.dtype).view_as(self.sums)
            if count := self.counts.get(peer, 0):
                frames.append(message[offset:].view(self.x.dtype).view(b, count, *shape))
        combined = None
        if self.sums is not None:
            parts = torch.stack([part for _, part in sorted(gathered.items()) if part is not None])
            combined = parts.sum(0)
        return Fetched(frames=torch.cat(frames, dim=1) if frames else self.x[:, :0], sums=combined)

    def _finish(self) -> None:
        """Wait for each message. On a GPU, the stream waits instead of the host."""
        # gloo returns one handle per message, NCCL one for all messages
        single = len(self.works) == len(self.operations)
        everyone = sorted({operation.peer for operation in self.operations})
        waits = self.exchange.waits
        on_gpu = self.x.device.type == "cuda"
        with waits.on_device(self.label) if on_gpu else waits.on_host(self.label):
            for index, work in enumerate(self.works):
                with named_peers(self.label, *([self.operations[index].peer] if single else everyone)):
                    work.wait()


@contextlib.contextmanager
def named_peers(label: str, *peers: int) -> Iterator[None]:
    """Turn errors of the process group inside the block into RankError. label: the operation that waits for `peers`.

    This rank's own errors, such as running out of memory, pass through unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        names = f"{'one of ' * (len(peers) > 1)}{rank_names(peers)}"
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        ended = "did not answer in time" if late else "is gone"
        raise RankError(f"{names} {ended} (waited for it in: {label})") from error


def _pack(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the bytes of several tensors."""
    rows = [part.contiguous().view(-1).view(torch.uint8) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
