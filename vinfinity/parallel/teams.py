"""Ranks dealt to guidance branches: each team holds the whole video and computes one branch of it."""

from collections.abc import Callable
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from vinfinity.parallel.exchange import Counters, FrameExchange, LocalExchange, RankExchange
from vinfinity.parallel.shards import FrameShards, Route


@dataclass(frozen=True)
class Team:
    """The team of `rank`, one of `ranks`: ranks `first` to `first + shards.ranks - 1` share the video among them.

    branch: the guidance branch that it computes, or None where every rank computes all of them.
    """

    rank: int
    ranks: int
    branch: int | None
    first: int
    shards: FrameShards

    @property
    def member(self) -> int:
        """This rank's number in its team."""
        return self.rank - self.first

    @property
    def held(self) -> range:
        """The frames of this rank."""
        return self.shards.held(self.member)

    def exchange(self) -> FrameExchange:
        """How the temporal layers of this rank reach those of its team."""
        if self.shards.ranks == 1:
            return LocalExchange()
        return RankExchange(self.member, self.shards, peers=range(self.first, self.first + self.shards.ranks))

    @property
    def writes(self) -> bool:
        """Whether this rank's frames are its own to keep, and not also those of a rank of the first team."""
        return self.first == 0


def team_of(rank: int, ranks: int, *, frames: int, split: bool) -> Team:
    """split: whether half of the ranks take each of two guidance branches; of an odd number, the first takes one more.

    Raises ValueError where there are too few ranks to split, or more than frames.
    """
    if not split:
        return Team(rank=rank, ranks=ranks, branch=None, first=0, shards=FrameShards(frames, ranks))
    if ranks < 2:
        raise ValueError("two guidance branches need two ranks")
    half = ranks - ranks // 2
    branch, first, size = (0, 0, half) if rank < half else (1, half, ranks - half)
    return Team(rank=rank, ranks=ranks, branch=branch, first=first, shards=FrameShards(frames, size))


def opposite(team: Team) -> tuple[range, Route]:
    """The ranks of the other team, and the route by which this rank gets its own frames of their branch, and sends them
    theirs. Peers of the route are numbered within the other team; `wanted` is all that this rank holds.
    """
    start = team.first + team.shards.ranks if team.first == 0 else 0
    ranks = range(start, start + team.ranks - team.shards.ranks)
    theirs = FrameShards(team.shards.frames, len(ranks))
    sends, receives = [], []
    for peer in range(theirs.ranks):
        held = theirs.held(peer)
        common = range(max(held.start, team.held.start), min(held.stop, team.held.stop))
        if common:
            mine = range(common.start - team.held.start, common.stop - team.held.start)
            sends.append((peer, tuple(mine)))
            receives.append((peer, mine.start, mine.stop))
    return ranks, Route(wanted=tuple(team.held), sends=tuple(sends), receives=tuple(receives))


def branch_swap(team: Team, counters: Counters) -> Callable[[Tensor], Tensor]:
    """The other branch's prediction for this rank's frames, in exchange for its own to them.

    Takes and returns (1, c, f, h, w). Raises RankError where a rank of the other team is late or gone.
    """
    peers, route = opposite(team)
    exchange = RankExchange(team.member, team.shards, peers=peers, counters=counters)

    def swap(prediction: Tensor) -> Tensor:
        mine = rearrange(prediction, "b c f h w -> b f c h w")
        theirs = exchange.fetch(mine, route, label="guidance").wait().frames
        return rearrange(theirs, "b f c h w -> b c f h w")

    return swap
