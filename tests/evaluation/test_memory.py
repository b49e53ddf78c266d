"""Memory hardly grows with the length of the video, and with the number of videos by what is kept of each."""

import gc
import resource
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from oracles.synthetic import panning, texture, to_frames

from vinfinity.config import VideoConfig, choose_format
from vinfinity.evaluation.api import compare_groups, measure_all
from vinfinity.evaluation.groups import Groups
from vinfinity.evaluation.picture import Picture
from vinfinity.evaluation.repetition import RepetitionMeasure
from vinfinity.evaluation.subject import ArraySource, Subject
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


def test_a_pair_of_batches_takes_its_contact_sheets_and_little_more() -> None:
    source = ArraySource(panning(8, height=192, width=320), Fraction(24))
    held, sizes = [], []
    # the first comparison imports and keeps what the next ones need
    for pairs in (1, 2, 5):
        names = tuple(f"{number}.mp4" for number in range(pairs))
        subjects = tuple(tuple(Subject(f"{batch}/{name}", source) for name in names) for batch in "ab")
        gc.collect()
        tracemalloc.start()
        result = compare_groups(Groups((Path("a"), Path("b")), names, subjects), reported=True, shown=False)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        sizes.append(sum(map(len, result[1].sheets)))
        del result
    # a pair's thumbnails of 160x96 would take 740 kB as pixels
    sheets, grown = (sizes[2] - sizes[1]) / 3, (held[2] - held[1]) / 3
    assert sheets < 100_000
    assert grown < sheets + 30_000


def test_the_encoder_of_a_copy_is_closed_before_the_next_video_is_measured() -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    source = ArraySource(panning(8, height=320, width=512), Fraction(24))
    # the first one imports and keeps what the next ones need
    measure_all([Subject("first", source)], shows="videos", shown=False)
    before = resident()
    subjects = [Subject(f"{number}.mp4", source) for number in range(8)]
    measured = measure_all(subjects, shows="videos", shown=False)
    # an open encoder takes 7 MB even for so few frames
    assert (resident() - before) / len(measured.previews) < 3e6


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
