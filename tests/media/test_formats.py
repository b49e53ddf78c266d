"""Every format, opened again: frames, rate, duration, colours and their tags, repetition, metadata; and continued."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from oracles.video import assert_exact_times, pictures_in, rgb_by_formula
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from vinfinity.config import VideoConfig, choose_format
from vinfinity.media.encoders import check_encoders
from vinfinity.media.writer import VideoWriter, _replace

FILM, WHOLE = Fraction(24000, 1001), Fraction(8)


@dataclass(frozen=True)
class Case:
    """A format. tolerance: the largest error of a patch of one colour, in 8-bit steps."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    decoder: str = ""
    pixel_format: str = ""
    tolerance: float = 3

    def __str__(self) -> str:
        return "-".join([self.name.replace("/", "-png"), *map(str, self.settings.values())])


VIDEOS = [
    Case("a.mp4", {}, "h264", "yuv420p"),
    Case("a.mp4", {"codec": "h265"}, "hevc", "yuv420p"),
    Case("a.mp4", {"codec": "h265", "pixel_format": "yuv444p"}, "hevc", "yuv444p"),
    Case("a.mp4", {"codec": "h265", "bit_depth": 10}, "hevc", "yuv420p10le"),
    Case("a.mp4", {"codec": "av1"}, "libdav1d", "yuv420p"),
    Case("a.mp4", {"codec": "av1", "bit_depth": 10}, "libdav1d", "yuv420p10le", tolerance=4),
    Case("a.mov", {}, "prores", "yuv422p10le", tolerance=1),
    Case("a.mov", {"codec": "h264"}, "h264", "yuv420p"),
    Case("a.mov", {"codec": "h265", "bit_depth": 10}, "hevc", "yuv420p10le"),
    Case("a.webm", {}, "vp9", "yuv420p"),
    Case("a.webm", {"codec": "av1", "bit_depth": 10}, "libdav1d", "yuv420p10le", tolerance=4),
]
ANIMATIONS = [Case("a.gif", tolerance=3), Case("a.webp", tolerance=4)]
FOLDERS = [Case("a/", tolerance=0.5), Case("a/", {"bit_depth": 16}, tolerance=0.002)]
ALL = VIDEOS + ANIMATIONS + FOLDERS
COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0.5, 0.5, 0.5), (0, 0, 0), (0.04, 0.78, 0.75)]


def patches(frames: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    """(f, h, w, 3) in 0 to 1: frames of one colour each."""
    colours = np.array([COLOURS[index % len(COLOURS)] for index in range(frames)], dtype=np.float64)
    return np.broadcast_to(colours[:, None, None], (frames, height, width, 3))


def ramp(frames: int, *, height: int = 48, width: int = 1024) -> np.ndarray:
    """(f, h, w, 3) in 0 to 1: grey from black to white."""
    return np.broadcast_to(np.linspace(0, 1, width)[None, None, :, None], (frames, height, width, 3))


def write(path: Path, case: Case, frames: np.ndarray, *, fps: Fraction = WHOLE, **given: Any) -> Path:
    video = choose_format(case.name, VideoConfig(**case.settings))
    check_encoders(video)
    _, height, width, _ = frames.shape
    white, kind = (255, np.uint8) if video.sample_bits == 8 else (65535, np.uint16)
    with VideoWriter(path, video, width=width, height=height, fps=fps, **given) as writer:
        for frame in frames[writer.frames :]:
            writer.write((frame * white).round().astype(kind))
    return path


def read(path: Path, case: Case) -> np.ndarray:
    """Return the frames in 0 to 1."""
    if path.is_dir():
        files = sorted(path.iterdir())
        assert [file.name for file in files] == [f"{index:06}.png" for index in range(len(files))]
        return np.stack([picture(file) for file in files])
    if case in ANIMATIONS:
        with Image.open(path) as image:
            shown = []
            for index in range(pictures_in(image)):
                image.seek(index)
                shown.append(np.asarray(image.convert("RGB")) / 255)
        return np.stack(shown)
    return rgb_by_formula(path)


def picture(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return frame.to_ndarray() / (255 if frame.format.name == "rgb24" else 65535)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_colours_are_right_in_every_format(case: Case, tmp_path: Path) -> None:
    frames = patches(11)
    shown = read(write(tmp_path / case.name, case, frames), case)
    assert shown.shape == frames.shape
    assert np.abs(shown - frames).max() * 255 <= case.tolerance


@pytest.mark.parametrize("case", VIDEOS, ids=str)
def test_videos_are_tagged_and_keep_their_rate(case: Case, tmp_path: Path) -> None:
    for fps in (WHOLE, FILM, Fraction(30000, 1001)):
        path = write(tmp_path / case.name, case, patches(27), fps=fps)
        with av.open(str(path)) as container:
            [stream] = container.streams.video
            codec = stream.codec_context
            next(container.decode(video=0))
            assert (codec.name, codec.pix_fmt) == (case.decoder, case.pixel_format)
            assert stream.average_rate == fps
            bt709, limited = 1, 1
            assert (codec.color_primaries, codec.color_trc, codec.colorspace) == (bt709, bt709, bt709)
            assert codec.color_range == limited
            if "h265" in case.settings.values():
                assert codec.codec_tag == "hvc1"
        if case.name == "a.webm":
            # Matroska counts milliseconds
            with av.open(str(path)) as container:
                times = [frame.time for frame in container.decode(video=0)]
                assert times == [pytest.approx(index / fps, abs=5.1e-4) for index in range(27)]
                assert (container.duration or 0) / 1e6 == pytest.approx(27 / fps, abs=2e-3)
        else:
            assert_exact_times(path, frames=27, fps=fps)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm"])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 17])
def test_short_videos_and_short_last_seconds_are_complete(name: str, length: int, tmp_path: Path) -> None:
    for codec in ("h265", "av1", None):
        if (name == "a.mov" and codec == "av1") or (name == "a.webm" and codec == "h265"):
            continue
        case = Case(name, {"codec": codec})
        path = write(tmp_path / name, case, patches(length))
        assert len(rgb_by_formula(path)) == length
        if name != "a.webm":
            assert_exact_times(path, frames=length, fps=WHOLE)


@pytest.mark.parametrize("case", ANIMATIONS, ids=str)
def test_animations_repeat_for_ever_or_play_once(case: Case, tmp_path: Path) -> None:
    for repeat, expected in ((None, 0), (True, 0), (False, {"a.gif": None, "a.webp": 1}[case.name])):
        again = Case(case.name, {"repeat": repeat}, tolerance=case.tolerance)
        path = write(tmp_path / case.name, again, patches(50), fps=FILM)
        with Image.open(path) as image:
            assert (pictures_in(image), image.info.get("loop")) == (50, expected)
            durations = []
            for index in range(50):
                image.seek(index)
                image.load()
                durations.append(image.info["duration"])
        # 10 ms and 1 ms are their clocks
        assert sum(durations) == pytest.approx(50 / FILM * 1000, abs={"a.gif": 5, "a.webp": 2}[case.name])
        assert max(durations) - min(durations) <= {"a.gif": 10, "a.webp": 1}[case.name]


def test_pyav_reads_a_gif(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gif", ANIMATIONS[0], patches(12), fps=Fraction(10))
    with av.open(str(path)) as container:
        [stream] = container.streams.video
        assert len(list(container.decode(video=0))) == 12
        assert stream.average_rate == Fraction(10)
        assert container.duration == 1_200_000


@pytest.mark.parametrize("case", ALL, ids=str)
def test_metadata_is_in_every_format(case: Case, tmp_path: Path) -> None:
    tags = {"title": 'a "réd" <ball>', "comment": '{"seed": 3}' + " " * 400}
    path = write(tmp_path / case.name, case, patches(2), metadata=tags)
    if case in VIDEOS:
        with av.open(str(path)) as container:
            found = {key.lower(): value for key, value in container.metadata.items()}
        assert {key: found[key] for key in tags} == tags
        return
    with Image.open(path / "000001.png" if path.is_dir() else path) as image:
        image.load()
        if path.is_dir():
            assert isinstance(image, PngImageFile)
            assert image.text == {"Title": tags["title"], "Comment": tags["comment"]}
            assert image.info["srgb"] == 0
        elif case.name == "a.webp":
            assert 'a "réd" &lt;ball&gt;</rdf:li>' in image.info["xmp"].decode()
        else:
            with av.open(str(path)) as container:
                joined = f"title: {tags['title']}\ncomment: {tags['comment']}"
                assert container.metadata["comment"] == joined
    shown = read(path, case)
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("case", "levels"),
    [
        (Case("a.mp4", {"codec": "h265", "bit_depth": 10, "crf": 1}), 800),
        (Case("a.mp4", {"codec": "av1", "bit_depth": 10, "crf": 1}), 800),
        (Case("a.mov", {}), 800),
        (Case("a.mp4", {"codec": "h265", "crf": 1}), 0),
        (Case("a/", {"bit_depth": 16}), 1024),
        (Case("a/", {}), 0),
    ],
    ids=str,
)
def test_more_bits_are_more_levels(case: Case, levels: int, tmp_path: Path) -> None:
    """A ramp of 1024 greys: 8 bits have 256 of them at most."""
    frames = ramp(3)
    shown = read(write(tmp_path / case.name, case, frames), case)
    count = len(np.unique(shown[1, 20, :, 1].round(6)))
    assert count >= levels if levels else count <= 256
    error = np.abs(shown - frames).mean() * 255
    assert error < 0.2 if levels else error > 0.2


def test_rows_are_right_where_threads_would_meet(tmp_path: Path) -> None:
    """swscale with several threads spoils rows of more than 8 bits."""
    rows, columns = np.mgrid[0:50, 0:68]
    frames = np.stack([np.stack([columns / 68, rows / 50, rows * 0 + k / 60], axis=-1) for k in range(60)])
    case = VIDEOS[6]
    shown = read(write(tmp_path / case.name, case, frames), case)
    assert np.abs(shown - frames).max() * 255 < 10


def test_sides_are_cut_back_or_extended(tmp_path: Path) -> None:
    expected = {"a.mp4": (34, 52), "a.mov": (33, 52), "a.gif": (33, 51), "a.webp": (33, 51), "a/": (33, 51)}
    for name, size in expected.items():
        case = next(case for case in ALL if case.name == name and not case.settings)
        assert read(write(tmp_path / name, case, patches(2, height=33, width=51)), case).shape[1:3] == size


# ---- continued ----

WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from vinfinity.config import VideoConfig, choose_format
from vinfinity.media.writer import VideoWriter

name, unfinished, frames, fate = sys.argv[1:5]
settings = dict(pair.split("=") for pair in sys.argv[5:])
settings = {key: int(value) if value.isdigit() else value for key, value in settings.items()}
ending = Path(name).suffix or "/"
video = choose_format(f"a{ending}", VideoConfig(**settings))
white, kind = (255, np.uint8) if video.sample_bits == 8 else (65535, np.uint16)
pictures = np.random.default_rng(0).random((4, 64, 128, 3))
writer = VideoWriter(Path(name), video, width=128, height=64, fps=8, unfinished=Path(unfinished))
first = writer.frames
with writer:
    for index in range(first, int(frames)):
        writer.write((pictures[index % 4] * white).astype(kind))
    print(first, flush=True)
    if fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_killed_writer_is_continued_to_the_same_video(case: Case, tmp_path: Path) -> None:
    ending = Path(case.name).suffix
    settings = [f"{key}={value}" for key, value in case.settings.items()]

    def run(name: str, frames: int, fate: str) -> int:
        command = [sys.executable, "-c", WRITER, str(tmp_path / name), str(tmp_path / "decoded.mp4")]
        done = subprocess.run([*command, str(frames), fate, *settings], capture_output=True, text=True)
        assert done.returncode == (-signal.SIGKILL if fate == "kill" else 0), done.stderr
        assert done.stderr == ""
        return int(done.stdout)

    assert run(f"a{ending}", 21, "kill") == 0
    # whole seconds are there, and can be watched
    with av.open(str(tmp_path / "decoded.mp4")) as container:
        assert len(list(container.decode(video=0))) == 16
    assert run(f"a{ending}", 27, "end") == 16
    assert run(f"b{ending}", 27, "end") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{ending}", f"b{ending}"]
    one, other = (read(tmp_path / f"{name}{ending}", case) for name in "ab")
    assert len(one) == 27
    assert np.array_equal(one, other)


def test_fragments_of_another_format_are_not_continued(tmp_path: Path) -> None:
    unfinished = tmp_path / "decoded.mp4"
    for case, expected in (
        (VIDEOS[0], 0),
        (VIDEOS[0], 8),
        (VIDEOS[1], 0),
        (FOLDERS[0], 0),
        (ANIMATIONS[0], 8),
    ):
        video = choose_format(case.name, VideoConfig(**case.settings))
        writer = VideoWriter(tmp_path / "x", video, width=64, height=48, fps=8, unfinished=unfinished)
        # a GIF keeps its frames as a folder of PNG does
        assert writer.frames == expected
        for _ in range(8 - expected):
            writer.write(np.zeros((48, 64, 3), np.uint8))


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    case = FOLDERS[0]
    write(tmp_path / case.name, case, patches(9))
    (tmp_path / "a" / "000004.png").write_bytes(b"old")
    write(tmp_path / case.name, case, patches(5))
    assert len(read(tmp_path / case.name, case)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", case, patches(2))
    assert len(read(tmp_path / "empty", case)) == 2


@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_video_is_on_disk_when_it_appears(
    case: Case, tmp_path: Path, on_disk: Callable[[Path], bool]
) -> None:
    path = write(tmp_path / case.name, case, patches(2))
    for written in (tmp_path, path, *(path.iterdir() if path.is_dir() else ())):
        assert on_disk(written)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on another file system."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_a_folder_behind_a_link_is_replaced_on_its_own_file_system(elsewhere: Path, tmp_path: Path) -> None:
    case = FOLDERS[0]
    (elsewhere / "frames").mkdir()
    (tmp_path / "link").symlink_to(elsewhere / "frames")
    for count in (3, 2):
        write(tmp_path / "link", case, patches(count))
        assert len(read(tmp_path / "link", case)) == count
        assert (tmp_path / "link").is_symlink()
        assert [path.name for path in elsewhere.iterdir()] == ["frames"]


def test_a_folder_that_cannot_be_replaced_stays(elsewhere: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a", FOLDERS[0], patches(2))
    (elsewhere / "new").mkdir()
    with pytest.raises(OSError, match="cross-device"):
        _replace(elsewhere / "new", path)
    assert len(read(path, FOLDERS[0])) == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_failure_leaves_nothing_behind(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a frame is"):
        write(tmp_path / case.name, case, patches(3)[:, :, :, :2])
    assert list(tmp_path.iterdir()) == []
