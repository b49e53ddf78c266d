"""Memory hardly grows with the length of the video."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from oracles.synthetic import texture, to_frames

from vinfinity.config import VideoConfig, choose_format
from vinfinity.evaluation.picture import Picture
from vinfinity.evaluation.repetition import RepetitionMeasure
from vinfinity.media.writer import VideoWriter

PROGRAM = """
import resource, sys
import vinfinity
vinfinity.evaluate(sys.argv[1], every=16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_repetition_takes_a_thumbnail_of_each_frame_and_little_more() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (64, 16, 24, 3), dtype=np.uint8)
    peaks, lengths = [], (3_000, 9_000)
    for frames in lengths:
        tracemalloc.start()
        measure = RepetitionMeasure()
        for index in range(frames):
            measure.add(Picture(clip[index % len(clip)], index))
        assert measure.result(fps=8).period == len(clip)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 1,152 bytes of each frame, and some numbers for each lag
    assert (peaks[1] - peaks[0]) / (lengths[1] - lengths[0]) < 1_500


@pytest.mark.slow
def test_ten_times_the_frames_take_less_than_a_frame_of_rgb_for_each_hundred(tmp_path: Path) -> None:
    size, peaks = (320, 192), []
    for frames in (120, 1200):
        whole = to_frames(texture(0, height=size[1], width=size[0], margin=frames))
        path = tmp_path / f"{frames}.mp4"
        video = choose_format(None, VideoConfig(preset="veryfast"))
        with VideoWriter(path, video, width=size[0], height=size[1], fps=24, metadata={}) as writer:
            for index in range(frames):
                writer.write(np.ascontiguousarray(whole[:, index : index + size[0]]))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, path], check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout))
    # the frames that are more would take 190 MiB
    assert peaks[1] - peaks[0] < 40 * 2**20
