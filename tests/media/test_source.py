"""Videos and pictures to start from: read frame by frame, by time, in any shape; and what is refused."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from oracles.films import frames_of, write_film, write_picture, write_sound
from oracles.synthetic import panning, save, truncate

from vinfinity.errors import InputError
from vinfinity.media.reader import open_reader
from vinfinity.media.source import Source, check_shape, open_picture, open_video, read_frames, video_defaults


def read(
    source: Source, *, fps: Fraction | int, size: tuple[int, int] = (32, 24), fit: str = "cover"
) -> np.ndarray:
    frames = range(source.frames_at(Fraction(fps)))
    return np.stack(list(read_frames(source, fps=Fraction(fps), frames=frames, size=size, fit=fit)))


def levels(pictures: np.ndarray) -> list[int]:
    """Return the numbers of the frames of `frames_of` that pictures show."""
    return [round((picture.mean() - 20) / 4) for picture in pictures]


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.mov"])
@pytest.mark.parametrize("fps", [8, 24, Fraction(30000, 1001), Fraction(24000, 1001)])
def test_every_frame_is_read_once_at_the_videos_own_rate(
    name: str, fps: Fraction | int, tmp_path: Path
) -> None:
    frames = frames_of(40)
    codec, pixels = ("png", "rgb24") if name.endswith("mov") else ("ffv1", "bgr0")
    source = open_video(str(write_film(tmp_path / name, frames, fps=fps, codec=codec, pixel_format=pixels)))
    assert (source.size, source.steady, source.concerns()) == ((32, 24), True, [])
    assert abs(source.rate - fps) < Fraction(1, 1000)
    assert np.array_equal(read(source, fps=source.rate), frames)


def test_reading_can_begin_anywhere(tmp_path: Path) -> None:
    frames = frames_of(20)
    source = open_video(str(write_film(tmp_path / "a.mkv", frames)))
    some = read_frames(source, fps=Fraction(8), frames=range(13, 17), size=(32, 24), fit="cover")
    assert np.array_equal(np.stack(list(some)), frames[13:17])


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(4, [0, 2, 4, 6, 8, 10]), (16, [k // 2 for k in range(24)]), (12, [k * 2 // 3 for k in range(18)])],
)
def test_at_another_rate_frames_are_taken_by_time(fps: int, expected: list[int], tmp_path: Path) -> None:
    source = open_video(str(write_film(tmp_path / "a.mkv", frames_of(12), fps=8)))
    assert levels(read(source, fps=fps)) == expected


def test_a_variable_frame_rate_is_taken_by_time_with_a_warning(tmp_path: Path) -> None:
    times = [0, 100, 200, 600, 700]
    film = write_film(tmp_path / "a.mkv", frames_of(5), times=times, tick=Fraction(1, 1000), fps=10)
    source = open_video(str(film))
    assert "variable frame rate" in source.concerns()[0]
    assert levels(read(source, fps=10))[:8] == [0, 1, 2, 2, 2, 2, 3, 4]


def test_hdr_is_read_with_a_warning(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mkv", frames_of(3), codec="ffv1", pixel_format="yuv420p", color_trc=16)
    assert "HDR (PQ)" in open_video(str(film)).concerns()[0]


@pytest.mark.parametrize(
    ("tag", "matrix"), [(1, Colorspace.ITU709), (5, Colorspace.ITU601), (None, Colorspace.ITU601)]
)
def test_colours_follow_the_tagged_matrix(tag: int | None, matrix: Colorspace, tmp_path: Path) -> None:
    """Without a tag, small videos have the matrix of BT.601."""
    colour = np.full((2, 32, 32, 3), (200, 40, 90), dtype=np.uint8)
    tags: dict[str, Any] = {} if tag is None else {"colorspace": tag}
    film = write_film(
        tmp_path / "a.mp4",
        colour,
        codec="libx264",
        pixel_format="yuv420p",
        matrix=matrix,
        options={"crf": "1"},
        **tags,
    )
    pictures = read(open_video(str(film)), fps=8, size=(32, 32))
    assert np.abs(pictures.astype(int) - colour).max() <= 4


# ---- shapes ----


def halves(width: int, height: int) -> np.ndarray:
    """Return a frame whose left half is red and whose right half is blue."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[:, : width // 2, 0] = frame[:, width // 2 :, 2] = 255
    return frame


def test_cover_cuts_contain_adds_black_and_stretch_distorts(tmp_path: Path) -> None:
    source = open_picture(str(write_picture(tmp_path / "a.png", halves(64, 32))), field="input.first_frame")
    cover, contain, stretch = (
        read(source, fps=1, size=(32, 32), fit=fit)[0] for fit in ("cover", "contain", "stretch")
    )
    assert (cover[:, :10, 0].min(), cover[:, 22:, 2].min()) == (255, 255)
    assert (contain[:8].max(), contain[24:].max(), contain[10:22, :10, 0].min()) == (0, 0, 255)
    assert stretch[:, :10, 0].min() == 255
    for picture in (cover, contain, stretch):
        assert picture.shape == (32, 32, 3)


def test_rotated_and_stretched_pixels_are_shown_upright_and_square(tmp_path: Path) -> None:
    film = write_film(
        tmp_path / "a.mp4",
        np.stack([halves(64, 32)] * 2),
        codec="libx264",
        pixel_format="yuv420p",
        rotation=90,
    )
    source = open_video(str(film))
    assert source.size == (32, 64)
    top = read(source, fps=8, size=(32, 64))[0][:24].mean((0, 1))
    # turned anticlockwise, the right half is at the top
    assert top[2] > 200 > top[0]
    wide = write_film(
        tmp_path / "b.mp4",
        np.stack([halves(64, 32)] * 2),
        codec="libx264",
        pixel_format="yuv420p",
        aspect=Fraction(2, 1),
    )
    assert open_video(str(wide)).size == (128, 32)


def test_a_picture_of_another_shape_needs_to_be_told_how_to_fit(tmp_path: Path) -> None:
    source = open_picture(str(write_picture(tmp_path / "a.png", halves(64, 32))), field="input.first_frame")
    with pytest.raises(
        InputError, match="64x32, with another aspect ratio than the video's 32x32; add --fit"
    ):
        check_shape(source, (32, 32), fit=None)
    check_shape(source, (32, 32), fit="cover")
    check_shape(source, (128, 64), fit=None)


# ---- defaults, and what is refused ----


def test_frames_size_and_rate_default_to_those_of_the_video(tmp_path: Path) -> None:
    film = str(write_film(tmp_path / "a.mkv", frames_of(12), fps=8))
    values, origin = video_defaults(film, None)
    assert (values["frames"], values["size"], str(values["fps"])) == (12, "32x24", "8")
    assert origin == "video a.mkv"
    assert video_defaults(film, Fraction(4))[0]["frames"] == 6


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_a_copy_that_was_interrupted_is_refused(name: str, tmp_path: Path) -> None:
    """It was taken for a shorter video."""
    film = save(tmp_path / name, panning(40, height=64, width=96))
    assert video_defaults(str(film), None)[0]["frames"] == 40
    with pytest.raises(InputError, match=r"is cut off: it ends at 0\.\d\d (of 1\.67 )?s"):
        open_video(str(truncate(film)))


@pytest.mark.parametrize(("codec", "suffix"), [("ffv1", ".mkv"), ("libx264", ".mp4")])
def test_a_last_picture_that_is_shown_for_long_is_no_cut(codec: str, suffix: str, tmp_path: Path) -> None:
    """By its duration alone, a file that was cut off looks the same."""
    film = write_film(tmp_path / f"film{suffix}", frames_of(6), fps=8, codec=codec, pixel_format="yuv420p")
    held = tmp_path / "held.mkv"
    with av.open(str(film)) as source, av.open(str(held), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        last = max(packet.pts or 0 for packet in packets)
        for packet in packets:
            if packet.pts == last:
                packet.duration = 24 * (packet.duration or 0)
            packet.stream = stream
            target.mux(packet)
    with av.open(str(held)) as container:
        assert container.streams.video[0].metadata["DURATION"] == "00:00:03.625000000"
    assert len(open_video(str(held)).times) == len(list(open_reader(held))) == 6


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"not a video" * 99), "is not a video that can be read"),
        (lambda path: write_sound(path), "has no frames"),
        (
            lambda path: write_film(path.with_suffix(".mkv"), frames_of(0)).rename(path),
            "has no frames",
        ),
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is not a file"),
    ],
    ids=["empty", "corrupt", "sound", "no frames", "missing", "folder"],
)
def test_what_is_no_video_is_refused(make: object, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    make(path)  # type: ignore[operator]
    with pytest.raises(InputError, match=problem):
        open_video(str(path))


def test_a_video_is_no_picture(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mkv", frames_of(3))
    with pytest.raises(InputError, match="has 3 frames; use a picture"):
        open_picture(str(film), field="input.first_frame")


def test_a_video_that_changed_is_opened_again(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mkv", frames_of(3))
    assert len(open_video(str(film)).times) == 3
    assert len(open_video(str(write_film(film, frames_of(7)))).times) == 7
