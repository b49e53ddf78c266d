"""Messages between each pair of ranks: whether they arrive intact, and how fast."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vinfinity.machine.nvidia import Link
from vinfinity.parallel.exchange import RankExchange
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards, Route

# exchanges between two waits for the device: starting them takes Python's time, which is not to be measured
EXCHANGES = 10
# bytes per second in each direction: what PCIe should reach, and what a lane of NVLink has at least, on any board
PCIE, NVLINK_LANE = 8e9, 12.5e9


@dataclass(frozen=True)
class PairRequest:
    """What to measure.

    sizes: message sizes in bytes, multiples of 8. rounds: measurements of each size, of EXCHANGES messages each.
    """

    sizes: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class PairFigures:
    """Two ranks that send each other a message of `size` bytes at the same time.

    rate: bytes per second in each direction, in the median round. intact: whether all messages arrived as sent.
    """

    first: int
    second: int
    size: int
    rate: float
    intact: bool


def measure_pairs(*, ranks: int, sizes: Sequence[int], rounds: int, device: str) -> list[PairFigures]:
    """Measure each pair of ranks in turn, while the others wait. Raises RankError if ranks cannot reach each other."""
    request = PairRequest(tuple(sizes), rounds)
    return launch(_measure_on_rank, request, gpus=ranks, device=device, timeout=120.0)


def _measure_on_rank(request: PairRequest, ranks: Ranks) -> list[PairFigures]:
    exchange = RankExchange(ranks.rank, FrameShards(ranks.size, ranks.size))
    others = [rank for rank in range(ranks.size) if rank != ranks.rank]
    # NCCL connects ranks at their first message, and all of them must take part in that
    _Swap(exchange, others, 8, ranks).seconds(1)
    return [
        _measure_pair(exchange, first, second, size, request.rounds, ranks)
        for first in range(ranks.size)
        for second in range(first + 1, ranks.size)
        for size in request.sizes
    ]


def _measure_pair(
    exchange: RankExchange, first: int, second: int, size: int, rounds: int, ranks: Ranks
) -> PairFigures:
    peers = {first: [second], second: [first]}.get(ranks.rank, [])
    swap = _Swap(exchange, peers, size, ranks) if peers else None
    seconds = []
    # the first round warms up
    for _ in range(1 + rounds):
        ranks.all_gather(None)
        seconds.append(0.0 if swap is None else swap.seconds(EXCHANGES))
    found = ranks.all_gather((statistics.median(seconds[1:]), swap is None or swap.intact()))
    slowest = max(time for time, _ in found)
    return PairFigures(first, second, size, rate=size / slowest, intact=all(right for _, right in found))


def fewest_lanes(links: Sequence[Link]) -> int:
    """Return the rate of NVLink between any two GPUs; 0 if a pair has only PCIe, or if nothing is known."""
    lanes = [int(link.kind[2:]) if link.kind.startswith("NV") else 0 for link in links]
    return min(lanes, default=0)


def least_rate(links: Sequence[Link]) -> float:
    """Return the bytes per second in each direction that messages of 50 MiB should reach: half the rate of NVLink."""
    return max(PCIE, 0.5 * fewest_lanes(links) * NVLINK_LANE)


class _Swap:
    """Messages of `size` bytes to and from each peer."""

    def __init__(self, exchange: RankExchange, peers: Sequence[int], size: int, ranks: Ranks) -> None:
        self._exchange, self._peers, self._device = exchange, peers, ranks.device
        # copies of long numbers are as fast as memory, those of bytes are not
        self._message = torch.full((1, 1, size // 8), ranks.rank + 1, dtype=torch.int64, device=ranks.device)
        self._frames = self._message[:, :0]
        self._route = Route(
            wanted=tuple(peers),
            sends=tuple((peer, (0,)) for peer in peers),
            receives=tuple((peer, place, place + 1) for place, peer in enumerate(peers)),
        )

    def seconds(self, exchanges: int) -> float:
        """Return the mean time of consecutive exchanges, until all messages have arrived."""
        self._wait()
        started = time.perf_counter()
        for _ in range(exchanges):
            fetch = self._exchange.fetch(self._message, self._route, label="pairs of ranks")
            self._frames = fetch.wait().frames
        self._wait()
        return (time.perf_counter() - started) / exchanges

    def intact(self) -> bool:
        """Return whether the last messages arrived as they were sent."""
        wanted = torch.tensor([peer + 1 for peer in self._peers], dtype=torch.int64, device=self._device)
        return bool((self._frames == wanted[None, :, None]).all())

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
