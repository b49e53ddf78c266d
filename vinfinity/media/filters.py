"""FFmpeg's filters, frame by frame."""

from collections.abc import Iterator

import av
from av.filter.context import FilterContext


def pulled(sink: FilterContext) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Yield the frames that are ready at the end of a graph."""
    while True:
        try:
            frame = sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, av.VideoFrame | av.AudioFrame)
        yield frame
