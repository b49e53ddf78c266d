"""What players read from an MP4, by FFmpeg's demuxer and decoder."""

from fractions import Fraction
from pathlib import Path

import av


def exactly(ticks: int | None, tick: Fraction | None) -> Fraction:
    """A time in seconds."""
    assert ticks is not None
    assert tick is not None
    return ticks * Fraction(tick)


def times_of_frames(path: Path, *, edit_list: bool = True) -> list[Fraction]:
    """The times of the decoded frames, in seconds. edit_list: whether the player has heard of edit lists."""
    with av.open(str(path), options={} if edit_list else {"ignore_editlist": "1"}) as container:
        return [exactly(frame.pts, frame.time_base) for frame in container.decode(video=0)]


def assert_exact_times(path: Path, *, frames: int, fps: Fraction | int, complete: bool = True) -> None:
    """Frame n of a file is shown at n / fps seconds, as its packets, the decoder and the container all say.

    complete: whether the file is finished; one that still grows does not know its length yet.
    """
    period = 1 / Fraction(fps)
    expected = [index * period for index in range(frames)]
    with av.open(str(path)) as container:
        [stream] = container.streams.video
        packets = [packet for packet in container.demux(stream) if packet.dts is not None]
        tick = stream.time_base
        shown = [exactly(packet.pts, tick) for packet in packets]
        decoded = [exactly(packet.dts, tick) for packet in packets]
        assert sorted(shown) == expected
        assert decoded == [decoded[0] + time for time in expected]
        assert all(late >= early for late, early in zip(shown, decoded, strict=True))
        assert {exactly(packet.duration, tick) for packet in packets} == {period}
        if complete:
            assert (stream.frames, stream.start_time, stream.average_rate) == (frames, 0, 1 / period)
            assert exactly(stream.duration, tick) == frames * period
            # in microseconds
            assert abs(exactly(container.duration, Fraction(1, 10**6)) - frames * period) <= Fraction(
                1, 10**6
            )
    assert times_of_frames(path) == expected
