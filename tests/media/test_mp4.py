"""The MP4 and the contact sheet: what they hold, and that nothing is lost when writing fails."""

import io
import json
import os
import stat
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from oracles.video import read_video
from PIL import Image

from vinfinity.config import VideoConfig, choose_format
from vinfinity.errors import OutputError
from vinfinity.media.mp4 import read_metadata
from vinfinity.media.sheet import ContactSheet, encode_png
from vinfinity.media.writer import VideoWriter

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
    "teal": (10, 200, 190),
}
MP4 = choose_format(None, VideoConfig())


def patches(height: int, width: int) -> np.ndarray:
    """(f, h, w, 3): one frame of each colour."""
    return np.stack([np.full((height, width, 3), colour, dtype=np.uint8) for colour in COLOURS.values()])


def save(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    size: tuple[int, int],
    config: VideoConfig,
    fps: int = 8,
    **metadata: str,
) -> None:
    height, width = size
    video = choose_format(None, config)
    tags = metadata if config.metadata else {}
    with VideoWriter(path, video, width=width, height=height, fps=fps, metadata=tags) as mp4:
        for frame in frames:
            mp4.write(frame)


# ---- MP4 ----


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p"])
@pytest.mark.parametrize("size", [(64, 96), (33, 51), (16, 17)])
def test_colours_are_preserved(tmp_path: Path, pixel_format: str, size: tuple[int, int]) -> None:
    height, width = size
    frames = patches(height, width)
    save(tmp_path / "a.mp4", frames, size=size, config=VideoConfig(crf=1, pixel_format=pixel_format))  # type: ignore[arg-type]
    read = read_video(tmp_path / "a.mp4")
    even = (height + height % 2, width + width % 2)
    expected = {"yuv420p": even, "yuv422p": (height, even[1]), "yuv444p": size}[pixel_format]
    assert read.shape == (len(frames), *expected, 3)
    error = np.abs(read[:, :height, :width].astype(int) - frames)
    assert error.mean() < 1
    assert error.max() <= 3
    # the added row and column repeat their neighbours
    assert np.abs(read[:, -1, -1].astype(int) - frames[:, -1, -1]).max() <= 3


def test_frames_keep_their_order_and_orientation(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:48, 0:64]
    frames = np.stack([np.stack([columns * 4, rows * 5, rows * 0 + k * 8], axis=-1) for k in range(30)])
    frames = frames.astype(np.uint8)
    save(tmp_path / "a.mp4", frames, size=(48, 64), config=VideoConfig(crf=1), fps=12)
    read = read_video(tmp_path / "a.mp4")
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < 3


def test_the_stream_is_tagged_with_its_colour_space(tmp_path: Path) -> None:
    save(tmp_path / "a.mp4", patches(32, 32), size=(32, 32), config=VideoConfig(), fps=24)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (Fraction(24), 7)
        bt709, limited = 1, 1
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (bt709, bt709, bt709)
        assert codec.color_range == limited
    content = (tmp_path / "a.mp4").read_bytes()
    # players can start before they have the whole file
    assert content.index(b"moov") < content.index(b"mdat")


def test_key_frames_are_one_second_apart(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, size=(20, 32, 32, 3), dtype=np.uint8)
    save(tmp_path / "a.mp4", frames, size=(32, 32), config=VideoConfig(crf=30), fps=6)
    with av.open(str(tmp_path / "a.mp4")) as container:
        keys = [index for index, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == [0, 6, 12, 18]


def test_metadata_is_written_unless_switched_off(tmp_path: Path) -> None:
    comment = json.dumps({"seed": 3, "prompt": 'é "✨" \n\\'}, ensure_ascii=False)
    save(
        tmp_path / "a.mp4",
        patches(16, 16),
        size=(16, 16),
        config=VideoConfig(),
        title="a réd ball",
        comment=comment,
    )
    assert read_metadata(tmp_path / "a.mp4")["title"] == "a réd ball"
    assert read_metadata(tmp_path / "a.mp4")["comment"] == comment
    save(
        tmp_path / "b.mp4",
        patches(16, 16),
        size=(16, 16),
        config=VideoConfig(metadata=False),
        title="a réd ball",
    )
    assert not {"title", "comment"} & read_metadata(tmp_path / "b.mp4").keys()
    assert "réd".encode() not in (tmp_path / "b.mp4").read_bytes()


def test_metadata_keeps_every_character(tmp_path: Path) -> None:
    codes = [code for code in range(1, 0x11000) if not 0xD800 <= code < 0xE000]
    for title in ("".join(map(chr, codes)), "a\nb\u2028c\r\n", "\ufeffx ", "é✨ x" * 25_000):
        save(tmp_path / "a.mp4", patches(16, 16), size=(16, 16), config=VideoConfig(), title=title)
        assert read_metadata(tmp_path / "a.mp4")["title"] == title


@pytest.mark.parametrize(
    "name", ["12:30.mp4", "file:x.mp4", "pipe:1.mp4", "-a.mp4", "%03d.mp4", "a?b#c.mp4", "x" * 251 + ".mp4"]
)
def test_a_file_may_have_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path(name), patches(16, 16), size=(16, 16), config=VideoConfig())
    assert len(read_video(Path(name))) == len(COLOURS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_quality_follows_crf(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, size=(4, 64, 64, 3), dtype=np.uint8)
    save(tmp_path / "good.mp4", frames, size=(64, 64), config=VideoConfig(crf=10))
    save(tmp_path / "small.mp4", frames, size=(64, 64), config=VideoConfig(crf=45, preset="ultrafast"))
    assert (tmp_path / "good.mp4").stat().st_size > 3 * (tmp_path / "small.mp4").stat().st_size


def test_a_file_appears_complete_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.mp4"
    with VideoWriter(path, MP4, width=16, height=16, fps=8) as mp4:
        mp4.write(patches(16, 16)[0])
        assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_unchanged(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")

    def frames() -> Iterator[np.ndarray]:
        yield from patches(16, 16)
        raise failure

    with pytest.raises(failure):
        save(path, frames(), size=(16, 16), config=VideoConfig())
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_not_part_of_the_next_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    killed = VideoWriter(path, MP4, width=16, height=16, fps=4)
    for frame in patches(16, 16):
        killed.write(frame)
    with VideoWriter(path, MP4, width=16, height=16, fps=4) as mp4:
        assert mp4.frames == 0
        mp4.write(patches(16, 16)[0])
    assert len(read_video(path)) == 1


def test_an_unwritable_path_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        VideoWriter(tmp_path / "file" / "a.mp4", MP4, width=16, height=16, fps=8)
    (tmp_path / "folder.mp4" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be written"):
        save(tmp_path / "folder.mp4", patches(16, 16), size=(16, 16), config=VideoConfig())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_frames_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    for frame in (np.zeros((16, 18, 3), np.uint8), np.zeros((16, 16, 3), np.float32)):
        with pytest.raises(ValueError, match="a frame is"):
            save(tmp_path / "a.mp4", [frame], size=(16, 16), config=VideoConfig())
    assert list(tmp_path.iterdir()) == []


# ---- contact sheets ----


@pytest.mark.parametrize(
    ("total", "shown"),
    [(1, [0]), (3, [0, 1, 2]), (16, list(range(16))), (96, list(range(3, 96, 6)))],
)
def test_the_sheet_shows_evenly_spread_frames_in_order(tmp_path: Path, total: int, shown: list[int]) -> None:
    sheet = ContactSheet(tmp_path / "new" / "a.png", frames_total=total)
    for index in sheet.frames:
        sheet.add(np.full((20, 30, 3), index, dtype=np.uint8))
    sheet.save()
    image = np.asarray(Image.open(tmp_path / "new" / "a.png"))
    columns, rows = min(4, total), -(-min(16, total) // 4)
    assert image.shape == (4 + rows * 24, 4 + columns * 34, 3)
    centres = image[14::24, 19::34, 0].ravel()
    assert centres[: len(shown)].tolist() == shown


def test_large_frames_are_shrunk_in_proportion(tmp_path: Path) -> None:
    sheet = ContactSheet(tmp_path / "a.png", frames_total=1000)
    for _ in sheet.frames:
        sheet.add(np.full((320, 512, 3), 90, dtype=np.uint8))
    assert sheet.grid().shape == (4 + 4 * 164, 4 + 4 * 260, 3)
    assert sheet.grid()[100, 100].tolist() == [90, 90, 90]


def test_a_sheet_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        ContactSheet(tmp_path / "a.png", frames_total=5).save()


def test_png_is_lossless() -> None:
    image = np.random.default_rng(0).integers(0, 256, size=(33, 51, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(image)))), image)
