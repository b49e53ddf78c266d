"""Arithmetic of frame ranges."""

from collections.abc import Iterable


def intersection(one: range, other: range) -> range:
    """Return the frames that both ranges contain."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def spans(frames: Iterable[int]) -> list[range]:
    """Return frames, in their order, as ranges of consecutive ones."""
    found: list[range] = []
    for frame in frames:
        if found and found[-1].stop == frame:
            found[-1] = range(found[-1].start, frame + 1)
        else:
            found.append(range(frame, frame + 1))
    return found


def merged(ranges: Iterable[range]) -> list[slice]:
    """Return ranges as slices, in order; one slice for ranges that follow each other without a gap."""
    found: list[slice] = []
    for span in ranges:
        if found and found[-1].stop == span.start:
            found[-1] = slice(found[-1].start, span.stop)
        elif span:
            found.append(slice(span.start, span.stop))
    return found
