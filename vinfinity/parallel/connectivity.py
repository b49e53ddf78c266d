"""A check that every rank can reach every other one, before the first network call would hang.

NCCL connects ranks at their first message. Where that fails (PCIe with access control, containers with little shared
memory, the wrong network interface), it raises nothing and waits forever.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from vinfinity.errors import RankError
from vinfinity.parallel.backends import CONNECTION_REMEDIES
from vinfinity.parallel.exchange import RankExchange, Work
from vinfinity.parallel.liveness import Liveness
from vinfinity.parallel.place import rank_names
from vinfinity.parallel.shards import FrameShards, plan_route

# seconds for the exchange, and for the ranks' reports afterwards
CONNECT_SECONDS, REPORT_SECONDS = 30.0, 5.0
MESSAGE_BYTES = 2**20
# seconds between two queries of a CUDA event
POLL_SECONDS = 0.01
# the most pairs that an error lists
MOST_LISTED = 4


class _FirstExchange(RankExchange):
    """Keeps its messages, so that each can be examined while others are missing."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, FrameShards(size, size))
        self.arriving: Mapping[int, Tensor] = {}
        self.works: Sequence[Work] = ()
        self.operations: Sequence[dist.P2POp] = ()

    def _start(
        self, leaving: Mapping[int, Tensor], arriving: Mapping[int, Tensor], label: str
    ) -> tuple[Sequence[Work], Sequence[dist.P2POp]]:
        for message in arriving.values():
            message.zero_()
        self.arriving = arriving
        self.works, self.operations = super()._start(leaving, arriving, label)
        return self.works, self.operations


def check_connections(
    rank: int,
    size: int,
    *,
    device: torch.device,
    store: dist.Store,
    liveness: Liveness,
    timeout: float,
    seconds: float = CONNECT_SECONDS,
) -> None:
    """Exchange a message with every other rank.

    timeout: seconds for NCCL to connect the ranks. It does so inside a call without a time limit, so `liveness` ends
    this rank if it takes longer. seconds: how long to wait for the messages, at most `timeout`.
    Raises RankError on every rank, with the names of the ranks that cannot reach each other.
    """
    seconds = min(seconds, timeout)
    problem = RankError(
        f"the ranks were not connected within {timeout:g} s; {CONNECTION_REMEDIES[device.type]}"
    )
    with liveness.within(timeout + seconds + 2 * REPORT_SECONDS, problem):
        missing = missing_messages(rank, size, device=device, seconds=seconds)
        store.set(f"missing/{rank}", json.dumps(missing))
        _compare_reports(size, device=device, store=store, seconds=seconds)


def _compare_reports(size: int, *, device: torch.device, store: dist.Store, seconds: float) -> None:
    """Read which messages each rank misses. Raise RankError if any is missing, or if a rank does not report."""
    silent: list[int] = []
    lost: list[tuple[int, int]] = []
    deadline = time.monotonic() + seconds + REPORT_SECONDS
    for other in range(size):
        try:
            store.wait([f"missing/{other}"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
        except RuntimeError:
            silent.append(other)
            continue
        lost += [(sender, other) for sender in json.loads(store.get(f"missing/{other}"))]
    if silent:
        raise RankError(f"{rank_names(silent)} did not take part in the first exchange within {seconds:g} s")
    if lost:
        pairs = ", ".join(f"rank {sender} to rank {receiver}" for sender, receiver in lost[:MOST_LISTED])
        more = f" and {len(lost) - MOST_LISTED} more pairs" if len(lost) > MOST_LISTED else ""
        raise RankError(
            f"no message arrived from {pairs}{more} within {seconds:g} s of the first exchange;"
            f" {CONNECTION_REMEDIES[device.type]}"
        )


def missing_messages(rank: int, size: int, *, device: torch.device, seconds: float) -> list[int]:
    """Send a message to every other rank; return the ranks whose own message does not arrive within `seconds`.

    NCCL connects the ranks first, and waits forever where it cannot.
    """
    exchange = _FirstExchange(rank, size)
    route = plan_route(FrameShards(size, size), rank, lambda _: range(size))
    # a rank's message consists of its number
    message = torch.full((1, 1, MESSAGE_BYTES // 8), rank + 1, dtype=torch.int64, device=device)
    try:
        pending = exchange.fetch(message, route, label="first exchange")
    except RankError:
        # the other ranks have given up
        return [other for other in range(size) if other != rank]
    # the call above also connected the ranks, which may take longer than the messages do
    deadline = time.monotonic() + seconds
    if device.type != "cuda":
        return _missing_on_host(exchange, deadline)
    pending.wait()
    done = torch.cuda.Event()
    done.record()
    while not done.query() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return [] if done.query() else _missing_on_gpu(exchange)


def _missing_on_host(exchange: _FirstExchange, deadline: float) -> list[int]:
    # also wait for the outgoing messages: their memory is needed until they are sent
    works = sorted(
        zip(exchange.operations, exchange.works, strict=True), key=lambda pair: pair[0].op is not dist.irecv
    )
    missing = []
    for operation, work in works:
        try:
            work.wait(timedelta(seconds=max(0.001, deadline - time.monotonic())))
        except RuntimeError:
            if operation.op is dist.irecv:
                missing.append(operation.peer)
    return missing


def _missing_on_gpu(exchange: _FirstExchange) -> list[int]:
    """Read the messages from a separate stream, since the main one waits for all of them."""
    stream = torch.cuda.Stream()
    last = torch.zeros(len(exchange.arriving), 8, dtype=torch.uint8, pin_memory=True)
    with torch.cuda.stream(stream):
        for row, arrived in zip(last, exchange.arriving.values(), strict=True):
            row.copy_(arrived[-8:], non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(stream)
    deadline = time.monotonic() + REPORT_SECONDS / 2
    while not copied.query() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    numbers = last.view(torch.int64)[:, 0].tolist()
    return [peer for peer, number in zip(exchange.arriving, numbers, strict=True) if number != peer + 1]
