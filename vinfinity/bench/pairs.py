"""Messages between each two ranks: whether they arrive as they were sent, and how fast."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vinfinity.parallel.exchange import RankExchange
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards, Route


@dataclass(frozen=True)
class PairRequest:
    """sizes: of a message, in bytes. rounds: messages of each size that are timed."""

    sizes: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class PairFigures:
    """Two ranks that send each other a message of `size` bytes at the same time. rate: bytes per second in each
    direction, of the median round. intact: whether all messages arrived as they were sent.
    """

    first: int
    second: int
    size: int
    rate: float
    intact: bool


def measure_pairs(*, ranks: int, sizes: Sequence[int], rounds: int, device: str) -> list[PairFigures]:
    """Each pair of ranks in turn, while the others wait. Raises RankError if ranks cannot reach each other."""
    request = PairRequest(tuple(sizes), rounds)
    return launch(_measure_on_rank, request, gpus=ranks, device=device, timeout=120.0)


def _measure_on_rank(request: PairRequest, ranks: Ranks) -> list[PairFigures]:
    exchange = RankExchange(ranks.rank, FrameShards(ranks.size, ranks.size))
    others = [rank for rank in range(ranks.size) if rank != ranks.rank]
    # NCCL connects ranks at their first message, and all of them must take part in that
    _swap(exchange, others, 8, ranks)
    figures = []
    for first in range(ranks.size):
        for second in range(first + 1, ranks.size):
            for size in request.sizes:
                found = _measure_pair(exchange, first, second, size, request.rounds, ranks)
                figures.append(found)
    return figures


def _measure_pair(
    exchange: RankExchange, first: int, second: int, size: int, rounds: int, ranks: Ranks
) -> PairFigures:
    peers = {first: [second], second: [first]}.get(ranks.rank, [])
    seconds, intact = [], True
    # the first round warms up
    for round_ in range(-1, rounds):
        ranks.collect(None)
        started = time.perf_counter()
        if peers:
            intact &= _swap(exchange, peers, size, ranks)
        if round_ >= 0:
            seconds.append(time.perf_counter() - started if peers else 0.0)
    found = ranks.collect((statistics.median(seconds), intact))
    slowest = max(time for time, _ in found)
    return PairFigures(first, second, size, rate=size / slowest, intact=all(right for _, right in found))


def _swap(exchange: RankExchange, peers: Sequence[int], size: int, ranks: Ranks) -> bool:
    """Sends `size` bytes to each peer and receives as many from each. Returns whether the right ones arrived."""
    message = torch.full((1, 1, size), ranks.rank + 1, dtype=torch.uint8, device=ranks.device)
    route = Route(
        wanted=tuple(peers),
        sends=tuple((peer, (0,)) for peer in peers),
        receives=tuple((peer, place, place + 1) for place, peer in enumerate(peers)),
    )
    frames = exchange.fetch(message, route, label="pairs of ranks").wait().frames
    wanted = torch.tensor([peer + 1 for peer in peers], dtype=torch.uint8, device=ranks.device)
    # reading the answer waits for the GPU
    return bool((frames == wanted[None, :, None]).all())
