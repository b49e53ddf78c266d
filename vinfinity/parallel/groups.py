"""Groups of frames that are computed together: pure arithmetic, the same on every rank.

In 16 bits, and on GPUs, the kernel that computes a frame, and so its last bits, depend on the shape of the whole batch.
Where that matters, layers work on whole groups: spans of a fixed number of frames, at multiples of it in the video. A
rank that holds only a part of a group pads the rest with zeros, so that every kernel sees the same shapes, with every
frame in the same place, on any number of ranks (docs/decisions/0017-the-same-bits-in-16-bits.md).

On a CPU, a frame has the same bits in one group as in several at once, so whole groups are computed together there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vinfinity.parallel.spans import intersection

# frames of the smallest group; larger ones are multiples of it
UNIT = 8
# up to this many frames, the video is one group
ONE_GROUP = 32
# groups of a long video: enough to share evenly, few enough to launch
GROUPS = 48


def group_size(frames: int) -> int:
    """Frames in a group of a video of `frames` frames."""
    return frames if frames <= ONE_GROUP else UNIT * -(-frames // (GROUPS * UNIT))


@dataclass(frozen=True)
class Piece:
    """A span of frames to compute at once, of which a rank holds those in `own`, as positions among its own frames.

    before, after: frames of the span that other ranks hold, at either end. skipped: whether it is left out, in a trace,
    and its result only allocated.
    """

    own: slice
    before: int = 0
    after: int = 0
    skipped: bool = False


@dataclass(frozen=True)
class Grouping:
    """How a rank's frames are divided into pieces. held: this rank's frames. frames: of the whole video.

    group: frames in a group; None where the shape of a batch does not matter: then pieces begin at this rank's first
    frame, and none has frames of others. together: whether several whole groups may be one piece.
    """

    held: range
    frames: int
    group: int | None = None
    together: bool = False

    def pieces(self, most: int, *, group: int | None = None) -> list[Piece]:
        """Pieces of at most `most` frames, but at least one, which cover this rank's frames in order.

        group: in place of the grouping's own, where that has one.
        """
        return self.of(self.held, most, group=group)

    def frames_of(self, piece: Piece) -> range:
        """The frames of a piece, with those of other ranks."""
        first = self.held.start + piece.own.start
        return range(first - piece.before, self.held.start + piece.own.stop + piece.after)

    def covering(self, borders: Sequence[int], most: int) -> list[Piece]:
        """The same, but no piece goes beyond a border: frames at which scenes begin, ascending. All of them, those that
        are skipped, too.
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
        """The same for another span of frames; positions count from its first frame."""
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
    """Consecutive pieces as one, up to `most` frames, where this rank holds all of their frames."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else piece
        padded = last.before or last.after or piece.before or piece.after
        if last is piece or padded or piece.own.stop - last.own.start > most:
            found.append(piece)
        else:
            found[-1] = Piece(slice(last.own.start, piece.own.stop))
    return found
