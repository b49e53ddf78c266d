"""Videos read a frame at a time: files of every format that a run writes, and folders of PNG."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from oracles.synthetic import panning, save, truncate
from oracles.video import read_video

from vinfinity.config import VideoConfig, choose_format
from vinfinity.errors import DamagedError, InputError
from vinfinity.media.reader import open_reader
from vinfinity.media.writer import VideoWriter


def write(path: Path, frames: np.ndarray, *, fps: int = 10, **settings: Any) -> Path:
    name = f"{path}/" if not path.suffix else str(path)
    video = choose_format(name, VideoConfig(**settings))
    with VideoWriter(path, video, width=160, height=96, fps=fps, metadata={}) as writer:
        for frame in frames:
            writer.write(frame if video.sample_bits == 8 else frame.astype(np.uint16) * 257)
    return path


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"codec": "h265"}),
        ("a.mov", {}),
        ("a.webm", {}),
        ("a.gif", {}),
        ("pictures", {}),
        ("pictures", {"bit_depth": 16}),
        ("take50%", {}),
        ("%d%%03d", {}),
        ("take%d.gif", {}),
    ],
)
def test_every_frame_of_every_format_is_read_in_order(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    frames = panning(12, speed=3)
    reader = open_reader(write(tmp_path / name, frames, **settings), fps=10)
    read = list(reader)
    assert (reader.size, reader.frames, reader.fps, len(read)) == ((160, 96), 12, Fraction(10), 12)
    for index, picture in enumerate(read):
        assert picture.dtype == np.uint8
        errors = np.abs(frames.astype(float) - picture).mean(axis=(1, 2, 3))
        assert int(errors.argmin()) == index
        # a GIF has 256 colours, and others half the resolution for colours
        assert errors[index] < 8


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_a_copy_that_was_interrupted_is_an_error_at_its_end(name: str, tmp_path: Path) -> None:
    reader = open_reader(truncate(write(tmp_path / name, panning(30))))
    frames = iter(reader)
    for _ in range(10):
        next(frames)
    with pytest.raises(DamagedError, match=r"ends after \d+ of 30 frames|is cut off after \d+ frames"):
        list(frames)


def test_a_file_is_read_as_by_read_video_and_as_often_as_asked(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mp4", panning(6))
    reader = open_reader(path)
    for _ in range(2):
        assert np.array_equal(np.stack(list(reader)), read_video(path))


def test_frames_are_counted_where_the_file_does_not_say(tmp_path: Path) -> None:
    """The growing file of a run has no count."""
    path = write(tmp_path / "a.webm", panning(7))
    assert open_reader(path).frames == 7


def test_an_animated_webp_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webp", panning(4))
    with pytest.raises(InputError, match=r"cannot decode|cannot be read as a video"):
        open_reader(path)


def test_a_folder_without_frame_0_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", panning(3))
    (folder / "000000.png").rename(folder / "000003.png")
    with pytest.raises(InputError, match=r"without a frame 000000\.png"):
        open_reader(folder)


def test_damage_within_a_folder_is_named_while_reading(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", panning(3))
    (folder / "000001.png").write_bytes(b"not a picture")
    with pytest.raises(DamagedError, match="cannot be decoded"):
        list(open_reader(folder))


def test_a_gap_in_a_folder_is_named_while_reading(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", panning(4))
    (folder / "000002.png").unlink()
    with pytest.raises(DamagedError, match="pictures: ends after 2 of 3 frames"):
        list(open_reader(folder))


def test_a_truncated_file_is_not_read_as_a_shorter_video(tmp_path: Path) -> None:
    """FFmpeg takes the end of the file for the end of the video."""
    path = truncate(save(tmp_path / "a.mp4", panning(24)))
    with pytest.raises(DamagedError, match=r"a\.mp4: ends after \d+ of 24 frames"):
        list(open_reader(path))


def test_a_trimmed_file_is_whole(tmp_path: Path) -> None:
    """Its header counts frames that players leave out."""
    whole, trimmed = save(tmp_path / "a.mp4", panning(24)), tmp_path / "trimmed.mp4"
    with av.open(str(whole)) as source, av.open(str(trimmed), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        assert stream.time_base is not None
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                # to begin 10 frames before 0 makes an edit list
                shift = round(10 / 24 / stream.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    reader = open_reader(trimmed)
    assert len(list(reader)) == 14
    assert reader.frames == 24
