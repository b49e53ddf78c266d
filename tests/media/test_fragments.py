"""The unfinished video file: readable after a crash, and continued only for the same video."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.video import read_video

from vinfinity.media.fragments import Fragments

WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from vinfinity.config import VideoConfig, choose_format
from vinfinity.media.writer import VideoWriter

frames = np.random.default_rng(0).integers(0, 255, (4, 64, 128, 3), dtype=np.uint8)
video = choose_format(None, VideoConfig())
writer = VideoWriter(Path(sys.argv[1]), video, width=128, height=64, fps=8, unfinished=Path(sys.argv[2]))
first = writer.frames
with writer:
    for index in range(first, int(sys.argv[3])):
        writer.write(frames[index % 4])
    print(first, writer.frames, flush=True)
    if "kill" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("frames", [7, 30, 61])
def test_a_video_plays_after_its_writer_was_killed_and_is_continued(frames: int, tmp_path: Path) -> None:
    unfinished = tmp_path / "decoded.mp4"

    def write(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path / name), str(unfinished), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    killed = write("a.mp4", str(frames), "kill")
    assert (killed.returncode, killed.stdout.split()) == (-signal.SIGKILL, ["0", str(frames)])
    assert not (tmp_path / "a.mp4").exists()
    readable = len(read_video(unfinished)) if unfinished.stat().st_size else 0
    # a fragment is a second of 8 frames
    assert readable == frames - frames % 8
    with unfinished.open("ab") as file:
        file.write(b"the beginning of a fragment")
    assert write("a.mp4", str(frames + 5)).stdout.split() == [str(readable), str(frames + 5)]
    assert write("uninterrupted.mp4", str(frames + 5)).stdout.split() == ["0", str(frames + 5)]
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "uninterrupted.mp4").read_bytes()
    assert len(read_video(tmp_path / "a.mp4")) == frames + 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "uninterrupted.mp4"]


ENCODER = """
import sys
from pathlib import Path
import numpy as np
from vinfinity.config import VideoConfig, choose_format
from vinfinity.media.writer import VideoWriter

random = np.random.default_rng(0)
picture = random.integers(0, 255, (20, 34, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1).astype(int)
video = choose_format(sys.argv[1], VideoConfig(codec=sys.argv[2]))
with VideoWriter(Path(sys.argv[1]), video, width=272, height=160, fps=24) as writer:
    for index in range(24):
        noise = random.integers(-6, 6, picture.shape)
        frame = (np.roll(picture, index, 1) + noise).clip(0, 255).astype(np.uint8)
        writer.write(frame if video.sample_bits == 8 else frame.astype(np.uint16) * 257)
"""


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "h264"), ("a.mp4", "h265"), ("a.mp4", "av1"), ("a.webm", "vp9"), ("a.mov", "prores")],
)
def test_the_same_frames_give_the_same_bytes_whatever_was_in_memory(
    name: str, codec: str, tmp_path: Path
) -> None:
    """x264 at widths like 272 read what nobody had written, and the second of two passes was another video."""
    files = set()
    for filling in "85", "170":
        command = [sys.executable, "-c", ENCODER, str(tmp_path / name), codec]
        # glibc fills the memory that it hands out with this byte
        subprocess.run(command, check=True, env={**os.environ, "MALLOC_PERTURB_": filling})
        files.add((tmp_path / name).read_bytes())
    assert len(files) == 1


def test_fragments_of_another_video_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "decoded.mp4"
    for identity, expected in (("one", (0, 0)), ("one", (8, 5)), ("other", (0, 0)), ("one", (0, 0))):
        fragments = Fragments(path, identity=identity)
        assert (fragments.frames, fragments.bytes) == expected
        if identity == "one":
            fragments.add(b"12345", frames=8)
    # shorter than it was: the file was changed
    path.write_bytes(b"1234")
    assert Fragments(path, identity="one").frames == 0
    (tmp_path / "decoded.json").write_text("[]")
    assert Fragments(path, identity="one").frames == 0
