"""Frames and ranks as pure arithmetic: which rank holds which frames, and which frames travel between ranks.

Every rank computes the routes of all ranks from (frames, ranks) alone, so nothing is negotiated.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from vinfinity.parallel.groups import group_size


def anchor_frames(frames: int, anchors: int) -> tuple[int, ...]:
    """Return the anchor frames: the midpoints of min(anchors, frames) equal spans of the video (paper, section 3.3)."""
    count = min(anchors, frames)
    return tuple((2 * k + 1) * frames // (2 * count) for k in range(count))


@dataclass(frozen=True)
class FrameShards:
    """A video's frames split over ranks: contiguous, in order, with counts that differ by at most one, or one group.

    frames: number of frames in the video. ranks: number of ranks. group: number of frames that layers compute together
    (see groups.py); a rank holds whole groups unless there are more ranks than groups. None if layers may divide frames
    freely. Raises ValueError if a rank would hold no frame.
    """

    frames: int
    ranks: int = 1
    group: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= self.frames:
            raise ValueError(f"{self.frames} frames cannot be split over {self.ranks} ranks")

    @classmethod
    def of(cls, frames: int, ranks: int = 1, *, grouped: bool) -> "FrameShards":
        """Split frames over ranks. grouped: whether layers work on whole groups."""
        return cls(frames, ranks, group_size(frames) if grouped else None)

    @property
    def _unit(self) -> int:
        """Number of frames that stay together on a rank."""
        if self.group is None:
            return 1
        groups = -(-self.frames // self.group)
        return self.group if self.ranks <= groups else 1

    def held(self, rank: int) -> range:
        """Return the absolute indices of the frames that `rank` holds."""
        unit, units = self._unit, -(-self.frames // self._unit)
        return range(
            unit * (rank * units // self.ranks),
            min(unit * ((rank + 1) * units // self.ranks), self.frames),
        )

    def owner(self, frame: int) -> int:
        """Return the rank that holds `frame`."""
        unit, units = self._unit, -(-self.frames // self._unit)
        return ((frame // unit + 1) * self.ranks - 1) // units


@dataclass(frozen=True)
class Route:
    """What one rank fetches in one exchange, and what it sends.

    wanted: absolute indices of the frames to receive, ascending.
    sends: (peer, positions among this rank's own frames), ascending by peer.
    receives: (peer, start, stop), the slice of `wanted` that comes from that peer.
    """

    wanted: tuple[int, ...]
    sends: tuple[tuple[int, tuple[int, ...]], ...]
    receives: tuple[tuple[int, int, int], ...]

    def compact(self) -> "tuple[tuple[int, ...], Route]":
        """Return the positions of all sent frames, ascending, and this route with positions among those alone."""
        sent = sorted({position for _, positions in self.sends for position in positions})
        place = {position: index for index, position in enumerate(sent)}
        sends = tuple((peer, tuple(place[at] for at in positions)) for peer, positions in self.sends)
        return tuple(sent), Route(self.wanted, sends, self.receives)


def plan_route(shards: FrameShards, rank: int, wanted_by: Callable[[int], Iterable[int]]) -> Route:
    """Plan the route of `rank` if every rank r fetches the frames in `wanted_by(r)` that it does not hold."""

    def missing(peer: int) -> list[int]:
        held = shards.held(peer)
        return sorted({frame for frame in wanted_by(peer) if frame not in held})

    wanted = missing(rank)
    receives: list[tuple[int, int, int]] = []
    start = 0
    for peer, frames in groupby(wanted, key=shards.owner):
        stop = start + len([*frames])
        receives.append((peer, start, stop))
        start = stop
    held = shards.held(rank)
    sends = []
    for peer in range(shards.ranks):
        own = tuple(frame - held.start for frame in missing(peer) if frame in held) if peer != rank else ()
        if own:
            sends.append((peer, own))
    return Route(wanted=tuple(wanted), sends=tuple(sends), receives=tuple(receives))
