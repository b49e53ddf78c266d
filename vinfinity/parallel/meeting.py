"""The first exchange of all ranks with each other: what does not work there would hang in the first network call.

NCCL connects ranks at their first message. Where that fails (PCIe with access control, containers with little shared
memory, the wrong network interface), it does not raise, but waits for ever.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from vinfinity.errors import RankError
from vinfinity.parallel.exchange import RankExchange, Work
from vinfinity.parallel.liveness import Liveness
from vinfinity.parallel.shards import FrameShards, plan_route

# seconds for the exchange, and for what ranks say of it afterwards
MEETING, REPORTS = 30.0, 5.0
MESSAGE_BYTES = 2**20
# seconds between two looks at the GPU
LOOK = 0.01
# the most pairs that an error lists
LISTED = 4

REMEDIES = {
    "cuda": "try NCCL_P2P_DISABLE=1; give containers more shared memory (/dev/shm, --shm-size 8g); set"
    " NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the network between the nodes; NCCL_DEBUG=INFO says more",
    "cpu": "set GLOO_SOCKET_IFNAME to the interface of the network between the nodes",
}


class _FirstExchange(RankExchange):
    """Keeps its messages, so that each can be looked at while others are missing."""

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


def meet(
    rank: int,
    size: int,
    *,
    device: torch.device,
    store: dist.Store,
    liveness: Liveness,
    timeout: float,
    seconds: float = MEETING,
) -> None:
    """Exchange a message with every other rank. Raises RankError, on every rank, that names the pairs that cannot.

    timeout: seconds in which NCCL must have connected the ranks. It does so inside a call that has no limit of its own,
    so this rank is then ended from outside. seconds: for the messages, at most `timeout`.
    """
    seconds = min(seconds, timeout)
    problem = RankError(f"the ranks were not connected within {timeout:g} s; {REMEDIES[device.type]}")
    with liveness.within(timeout + seconds + 2 * REPORTS, problem):
        missing = unheard(rank, size, device=device, seconds=seconds)
        store.set(f"unheard/{rank}", json.dumps(missing))
        _compare_reports(size, device=device, store=store, seconds=seconds)


def _compare_reports(size: int, *, device: torch.device, store: dist.Store, seconds: float) -> None:
    """Read what all ranks have not heard. Raises RankError if that is anything, or if a rank says nothing."""
    silent: list[int] = []
    lost: list[tuple[int, int]] = []
    deadline = time.monotonic() + seconds + REPORTS
    for other in range(size):
        try:
            store.wait([f"unheard/{other}"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
        except RuntimeError:
            silent.append(other)
            continue
        lost += [(sender, other) for sender in json.loads(store.get(f"unheard/{other}"))]
    if silent:
        names = f"rank {silent[0]}" if len(silent) == 1 else f"the ranks {', '.join(map(str, silent))}"
        raise RankError(f"{names} did not take part in the first exchange within {seconds:g} s")
    if lost:
        pairs = [f"{sender} to {receiver}" for sender, receiver in lost[:LISTED]]
        more = f" and {len(lost) - LISTED} more pairs" if len(lost) > LISTED else ""
        raise RankError(
            f"in the first exchange, no message got from rank {', '.join(pairs)}{more} within {seconds:g} s;"
            f" {REMEDIES[device.type]}"
        )


def unheard(rank: int, size: int, *, device: torch.device, seconds: float) -> list[int]:
    """The ranks whose message does not arrive within `seconds`, when every rank sends one to every other.

    NCCL connects the ranks before that, and waits without limit where it cannot.
    """
    exchange = _FirstExchange(rank, size)
    route = plan_route(FrameShards(size, size), rank, lambda _: range(size))
    # a rank's message consists of its number
    message = torch.full((1, 1, MESSAGE_BYTES // 8), rank + 1, dtype=torch.int64, device=device)
    try:
        pending = exchange.fetch(message, route, label="first exchange")
    except RankError:
        # the others have given up already
        return [other for other in range(size) if other != rank]
    # the call above has connected the ranks, which may take longer than the messages
    deadline = time.monotonic() + seconds
    if device.type != "cuda":
        return _unheard_on_host(exchange, deadline)
    pending.wait()
    done = torch.cuda.Event()
    done.record()
    while not done.query() and time.monotonic() < deadline:
        time.sleep(LOOK)
    return [] if done.query() else _unheard_on_gpu(exchange)


def _unheard_on_host(exchange: _FirstExchange, deadline: float) -> list[int]:
    # what leaves must be waited for, too: its memory is needed until then
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


def _unheard_on_gpu(exchange: _FirstExchange) -> list[int]:
    """Looks at the messages from a stream of its own, since the main one waits for all of them."""
    stream = torch.cuda.Stream()
    last = torch.zeros(len(exchange.arriving), 8, dtype=torch.uint8, pin_memory=True)
    with torch.cuda.stream(stream):
        for row, arrived in zip(last, exchange.arriving.values(), strict=True):
            row.copy_(arrived[-8:], non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(stream)
    deadline = time.monotonic() + REPORTS / 2
    while not copied.query() and time.monotonic() < deadline:
        time.sleep(LOOK)
    numbers = last.view(torch.int64)[:, 0].tolist()
    return [peer for peer, number in zip(exchange.arriving, numbers, strict=True) if number != peer + 1]
