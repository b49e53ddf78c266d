"""What players read from an MP4, by FFmpeg's demuxer and decoder."""

from fractions import Fraction
from pathlib import Path

import av


def assert_exact_times(path: Path, *, frames: int, fps: Fraction | int, complete: bool = True) -> None:
    """Frame n of a file is shown at n / fps seconds, as its packets, the decoder and the container all say.

    complete: whether the file is finished; one that still grows does not know its length yet.
    """
    fps = Fraction(fps)
    expected = [index / fps for index in range(frames)]
    with av.open(str(path)) as container:
        [stream] = container.streams
        packets = [packet for packet in container.demux(stream) if packet.dts is not None]
        tick = stream.time_base
        assert tick is not None
        assert sorted(packet.pts * tick for packet in packets if packet.pts is not None) == expected
        decoded = [packet.dts * tick for packet in packets if packet.dts is not None]
        assert decoded == [decoded[0] + time for time in expected]
        assert all(packet.pts >= packet.dts for packet in packets if None not in (packet.pts, packet.dts))
        assert {packet.duration * tick for packet in packets if packet.duration is not None} == {1 / fps}
        if complete:
            assert (stream.frames, stream.start_time) == (frames, 0)
            assert stream.duration is not None
            assert stream.duration * tick == frames / fps
            assert stream.average_rate == fps
            assert container.duration is not None
            # in microseconds
            assert abs(container.duration - 10**6 * frames / fps) <= 1
    with av.open(str(path)) as container:
        assert [frame.pts * frame.time_base for frame in container.decode(video=0)] == expected
