"""What the installed PyAV lacks is named, with what it has."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vinfinity.config import VideoConfig, choose_format
from vinfinity.config.formats import CONTAINERS
from vinfinity.errors import InputError
from vinfinity.media.encoders import check_encoders, pixel_formats
from vinfinity.media.writer import VideoWriter


def test_a_missing_codec_is_named_with_those_there_are() -> None:
    video = choose_format("a.mp4", VideoConfig(codec="h265"))
    absent = replace(video, codec=replace(video.codec, encoder="libx999"))
    with pytest.raises(
        InputError, match=r"^video\.codec: h265 needs libx999, which this build .* lacks; .*: av1, .*h264, .*"
    ):
        check_encoders(absent)


def test_a_missing_pixel_format_is_named() -> None:
    """The PyAV of PyPI has VP9 with 8 bits only."""
    video = choose_format("a.webm", VideoConfig(bit_depth=10))
    if video.pixel_format in (pixel_formats("libvpx-vp9") or ()):
        pytest.skip("this PyAV has it")
    with pytest.raises(
        InputError, match=r"^video\.bit_depth: 10 needs yuv420p10le of libvpx-vp9, .* it has yuv420p"
    ):
        check_encoders(video)


def test_a_missing_encoder_of_sound_is_named() -> None:
    video = choose_format("a.mp4", VideoConfig())
    silent = replace(video, container=replace(video.container, audio="libnothing"))
    with pytest.raises(InputError, match=r"^out: \.mp4 needs libnothing for its audio"):
        check_encoders(silent)


def test_everything_that_is_offered_by_default_is_there() -> None:
    for container in CONTAINERS:
        check_encoders(choose_format(f"a{container.suffix}", VideoConfig()))
    assert pixel_formats("libx999") is None


@pytest.mark.parametrize("ending", ["a.mp4", "a.webm"])
def test_encoding_leaves_no_thread_with_real_time_priority(ending: str, tmp_path: Path) -> None:
    """SVT-AV1 takes it for the whole process where it may, as root in a container: nothing else would run then."""
    video, before = choose_format(ending, VideoConfig(codec="av1")), os.sched_getscheduler(0)
    with VideoWriter(tmp_path / ending, video, width=64, height=64, fps=4) as writer:
        for _ in range(9):
            writer.write(np.zeros((64, 64, 3), np.uint8))
            assert {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")} == {
                before
            }
