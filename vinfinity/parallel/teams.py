"""Ranks split over guidance branches: each team holds the whole video and computes one branch of it."""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from vinfinity.parallel.exchange import Counters, FrameExchange, LocalExchange, RankExchange, TracedExchange
from vinfinity.parallel.shards import FrameShards, Route
from vinfinity.parallel.spans import intersection
from vinfinity.parallel.waits import Waits


@dataclass(frozen=True)
class Team:
    """The team of `rank`, one of `ranks`: ranks `first` to `first + shards.ranks - 1` share the video among them.

    branch: the guidance branch that the team computes; None if every rank computes all branches. shards: the frames of
    each member. waits: records in which operation this rank waits.
    """

    rank: int
    ranks: int
    branch: int | None
    first: int
    shards: FrameShards
    waits: Waits = field(default_factory=Waits, compare=False, repr=False)

    @property
    def member(self) -> int:
        """This rank's number in its team."""
        return self.rank - self.first

    @property
    def held(self) -> range:
        """Positions of this rank's frames among those that are computed."""
        return self.shards.held(self.member)

    def exchange(self) -> FrameExchange:
        """Make the exchange between this rank's temporal layers and the rest of its team."""
        if self.shards.ranks == 1:
            return LocalExchange()
        peers = range(self.first, self.first + self.shards.ranks)
        return RankExchange(self.member, self.shards, peers=peers, waits=self.waits)

    def rehearsal_exchange(self) -> FrameExchange:
        """Make an exchange with the messages of `exchange` that sends none of them; what arrives is undefined."""
        return LocalExchange() if self.shards.ranks == 1 else TracedExchange(self.member, self.shards)

    @property
    def writes(self) -> bool:
        """Whether this rank writes its frames: those of the second team are copies."""
        return self.first == 0


def team_of(rank: int, ranks: int, *, frames: int, split: bool, grouped: bool = False) -> Team:
    """Return the team of a rank.

    split: whether each of two guidance branches gets half of the ranks; if their number is odd, the first gets one
    more. grouped: see FrameShards.
    Raises ValueError if there are too few ranks to split, or more ranks than frames.
    """
    if not split:
        return Team(
            rank=rank,
            ranks=ranks,
            branch=None,
            first=0,
            shards=FrameShards.of(frames, ranks, grouped=grouped),
        )
    if ranks < 2:
        raise ValueError("two guidance branches need two ranks")
    half = ranks - ranks // 2
    branch, first, size = (0, 0, half) if rank < half else (1, half, ranks - half)
    shards = FrameShards.of(frames, size, grouped=grouped)
    return Team(rank=rank, ranks=ranks, branch=branch, first=first, shards=shards)


def opposite(team: Team) -> tuple[range, Route]:
    """Return the ranks of the other team, and the route on which this rank swaps predictions with them.

    This rank receives their predictions for all frames that it holds itself, and sends its own. Peers are numbered
    within the other team.
    """
    start = team.first + team.shards.ranks if team.first == 0 else 0
    ranks = range(start, start + team.ranks - team.shards.ranks)
    others = FrameShards(team.shards.frames, len(ranks), team.shards.group)
    sends, receives = [], []
    for peer in range(others.ranks):
        held = others.held(peer)
        common = intersection(held, team.held)
        if common:
            positions = range(common.start - team.held.start, common.stop - team.held.start)
            sends.append((peer, tuple(positions)))
            receives.append((peer, positions.start, positions.stop))
    return ranks, Route(wanted=tuple(team.held), sends=tuple(sends), receives=tuple(receives))


class BranchSwap:
    """Swaps predictions with the team that computes the other guidance branch."""

    def __init__(self, team: Team, counters: Counters) -> None:
        peers, self._route = opposite(team)
        self._branch = team.branch
        self._exchange = RankExchange(
            team.member, team.shards, peers=peers, counters=counters, waits=team.waits
        )

    def __call__(self, prediction: Tensor) -> Tensor:
        """Return both branches' predictions (2, c, f, h, w), given this team's (1, c, f, h, w).

        Raises RankError if a rank of the other team is late or gone.
        """
        own = rearrange(prediction, "b c f h w -> b f c h w")
        received = self._exchange.fetch(own, self._route, label="guidance").wait().frames
        other = rearrange(received, "b f c h w -> b c f h w")
        return torch.cat([prediction, other] if self._branch == 0 else [other, prediction])
