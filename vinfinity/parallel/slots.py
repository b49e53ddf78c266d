"""Where temporal attention stores projections of frames while it walks through a video: pure arithmetic.

Keys and values are projected into the slots from which attention reads them, so nothing needs to be gathered. A scene's
anchors come first. The frames around the current block of queries follow in a ring: each unit replaces one that no
later block attends to. Slots follow from the scene alone, so they are the same on every rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vinfinity.parallel.groups import UNIT
from vinfinity.parallel.spans import intersection


class Unit(NamedTuple):
    """Frames that are projected at once, and where their projections are stored.

    span: all frames of the unit. frames: those that a rank has and that belong to the unit's scene. slot: the slot of
    the span's first frame.
    """

    span: range
    frames: range
    slot: int

    def slots(self, frames: range) -> range:
        """Return the slots of the given frames, as far as they are in the unit."""
        shared = intersection(self.span, frames)
        first = self.slot + shared.start - self.span.start
        return range(first, first + len(shared))


@dataclass(frozen=True)
class Ring:
    """The slots of a scene's frames.

    units: all units that the scene's blocks attend to, in order. units_stored: how many of them are stored at a time.
    start: the first slot.
    """

    units: Sequence[range]
    units_stored: int
    start: int

    @classmethod
    def of(cls, units: Sequence[range], covers: Sequence[range], start: int) -> "Ring":
        """Make the ring of a scene. covers: the frames that each of its blocks needs at once."""
        overlaps = (sum(bool(intersection(unit, cover)) for unit in units) for cover in covers)
        return cls(units, max(overlaps), start)

    def around(self, cover: range, reach: range) -> Iterator[Unit]:
        """Yield the units that cover some frames. reach: the frames that a rank has."""
        for index, span in enumerate(self.units):
            if intersection(span, cover):
                yield Unit(span, intersection(span, reach), self.start + UNIT * (index % self.units_stored))

    def keys(
        self, anchors: Sequence[int], units: Sequence[Unit], span: range
    ) -> tuple[int, list[int | None]]:
        """Return the first slot that a block attends to, and the frame in each slot from there on; None for gaps.

        anchors: the scene's anchors, which are right before the ring. units: the block's units. span: the frames of its
        local scopes.
        """
        first = self.start - len(anchors)
        at = dict(enumerate(anchors, first))
        for unit in units:
            at.update(zip(unit.slots(span), intersection(unit.span, span), strict=True))
        slots = range(min(at), max(at) + 1) if at else range(self.start, self.start)
        return slots.start, [at.get(slot) for slot in slots]
