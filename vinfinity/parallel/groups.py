"""Groups of frames that are computed together: pure arithmetic, the same on every rank.

In 16 bits and on GPUs, the shape of the whole batch decides which kernel computes a frame, and so the frame's last
bits. Where that matters, layers work on whole groups: spans of a fixed number of frames that start at multiples of it.
A rank that holds only part of a group pads the rest with zeros. So every kernel sees the same shapes, with every frame
at the same position, on any number of ranks (docs/decisions/0017-the-same-bits-in-16-bits.md).

On a CPU, a frame has the same bits in one group as in several, so several whole groups are computed together there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vinfinity.parallel.spans import intersection

# frames in the smallest group; larger groups are multiples of it
UNIT = 8
# up to this many frames, the video is one group
ONE_GROUP = 32
# most groups of a video: enough to share them evenly among ranks, few enough that launching them costs little
GROUPS = 48


def group_size(frames: int) -> int:
    """Return the number of frames in each group of a video of `frames` frames."""
    return frames if frames <= ONE_GROUP else UNIT * -(-frames // (GROUPS * UNIT))


@dataclass(frozen=True)
class Piece:
    """A span of frames that a rank computes at once.

    own: positions, among the rank's frames, of those that the rank holds. before, after: number of frames at either end
    of the span that other ranks hold. skipped: whether a trace leaves the piece out, and only allocates its result.
    """

    own: slice
    before: int = 0
    after: int = 0
    skipped: bool = False


@dataclass(frozen=True)
class Grouping:
    """How a rank's frames are divided into pieces.

    held: this rank's frames. frames: number of frames in the whole video. group: number of frames in a group; None if
    the shape of a batch does not matter: then pieces start at this rank's first frame, and hold no frames of other
    ranks. together: whether several whole groups may form one piece.
    """

    held: range
    frames: int
    group: int | None = None
    together: bool = False

    def pieces(self, most: int, *, group: int | None = None) -> list[Piece]:
        """Divide this rank's frames into pieces of at most `most` frames, but at least one, in order.

        group: replaces the grouping's own group size, if that is set.
        """
        return self.of(self.held, most, group=group)

    def frames_of(self, piece: Piece) -> range:
        """Return the frames of a piece, including those of other ranks."""
        first = self.held.start + piece.own.start
        return range(first - piece.before, self.held.start + piece.own.stop + piece.after)

    def covering(self, borders: Sequence[int], most: int) -> list[Piece]:
        """Divide this rank's frames like `pieces`, but split pieces at scene borders.

        borders: the first frames of scenes, ascending. Includes pieces that a trace skips.
        """
        cut = []
        for piece in Grouping.of(self, self.held, most):
            span = self.frames_of(piece)
            inside = [border for border in borders if span.start < border < span.stop]
            for start, stop in pairwise([span.start, *inside, span.stop]):
                own = intersection(range(start, stop), self.held)
                if own:
                    positions = slice(own.start - self.held.start, own.stop - self.held.start)
                    cut.append(Piece(positions, own.start - start, stop - own.stop))
        return cut

    def of(self, span: range, most: int, *, group: int | None = None) -> list[Piece]:
        """Divide any span of frames like `pieces` does. Positions count from its first frame."""
        most = max(1, most)
        if self.group is None:
            return [Piece(slice(start, min(start + most, len(span)))) for start in range(0, len(span), most)]
        group = group or self.group
        pieces = []
        for start in range(span.start // group * group, span.stop, group):
            whole = range(start, min(start + group, self.frames))
            for first in range(whole.start, whole.stop, most):
                part = range(first, min(first + most, whole.stop))
                own = intersection(part, span)
                if own:
                    positions = slice(own.start - span.start, own.stop - span.start)
                    pieces.append(Piece(positions, own.start - part.start, part.stop - own.stop))
        return _together(pieces, most) if self.together else pieces


def _together(pieces: Sequence[Piece], most: int) -> list[Piece]:
    """Join consecutive pieces, up to `most` frames, where this rank holds all of their frames."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else piece
        padded = last.before or last.after or piece.before or piece.after
        if last is piece or padded or piece.own.stop - last.own.start > most:
            found.append(piece)
        else:
            found[-1] = Piece(slice(last.own.start, piece.own.stop))
    return found
