"""Where temporal attention stores projections of frames while it walks through a video: pure arithmetic.

Keys and values are projected into the places from which attention reads them, so that nothing is gathered. A scene's
anchors come first. The frames around the current block of queries follow, in a ring: each unit takes the place of one
that no later block attends to. Places follow from the scene alone, so they are the same on every rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vinfinity.parallel.groups import UNIT
from vinfinity.parallel.spans import intersection


class Unit(NamedTuple):
    """Frames that are projected at once, and where their projections are stored.

    frames: those of `span` that a rank has, of the scene that the unit was made for. place: that of the span's start.
    """

    span: range
    frames: range
    slot: int

    def slots(self, frames: range) -> range:
        """The places of those of some frames that are in the unit."""
        shared = intersection(self.span, frames)
        first = self.slot + shared.start - self.span.start
        return range(first, first + len(shared))


@dataclass(frozen=True)
class Ring:
    """The places of a scene's frames.

    units: all that its blocks attend to, in order. slots: how many of them are stored at a time. start: first place.
    """

    units: Sequence[range]
    units_stored: int
    start: int

    @classmethod
    def of(cls, units: Sequence[range], covers: Sequence[range], start: int) -> "Ring":
        """covers: the frames that each block of the scene needs at a time."""
        overlaps = (sum(bool(intersection(unit, cover)) for unit in units) for cover in covers)
        return cls(units, max(overlaps), start)

    def around(self, cover: range, reach: range) -> Iterator[Unit]:
        """The units that cover some frames. reach: the frames that a rank has."""
        for index, span in enumerate(self.units):
            if intersection(span, cover):
                yield Unit(span, intersection(span, reach), self.start + UNIT * (index % self.units_stored))

    def keys(
        self, anchors: Sequence[int], units: Sequence[Unit], span: range
    ) -> tuple[int, list[int | None]]:
        """The first place, and the frames in the places from there on, that a block attends to; None for gaps.

        anchors: those of the scene, right before the ring. units: of the block. span: its local scopes.
        """
        first = self.start - len(anchors)
        at = dict(enumerate(anchors, first))
        for unit in units:
            at.update(zip(unit.slots(span), intersection(unit.span, span), strict=True))
        slots = range(min(at), max(at) + 1) if at else range(self.start, self.start)
        return slots.start, [at.get(slot) for slot in slots]
