"""The harness of the study of long videos: it resumes, reads clips as the world's recogniser does, and tests pairs."""

import argparse
import csv
from pathlib import Path

import long_video
import numpy as np
import pytest

import vinfinity


@pytest.mark.parametrize("setting", long_video.VARIANTS)
def test_every_setting_of_the_study_is_accepted(setting: str) -> None:
    variant = long_video.VARIANTS[setting]
    config = vinfinity.load_config(prompt="a red ball", frames=96, **variant.settings)
    assert config.frames == 96


def test_the_oracle_reads_its_own_world_as_right_and_steady() -> None:
    [scene, other] = long_video.scenes(2)
    video = long_video._world().render(scene, np.arange(32))
    found = long_video.read(video, scene)
    assert found["read.steady"] > 0.9
    assert found["read.right"] > 0.7
    assert found["read.same"] == 1
    mixed = np.concatenate([video[:16], long_video._world().render(other, np.arange(16))])
    assert long_video.read(mixed, scene)["read.same"] == 0.5


def test_a_study_goes_on_where_it_ended_and_is_summed_up_by_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study.csv"
    small = ["--frames", "32", "--scenes", "1", "--seeds", "2", "--steps", "1", "--out", str(out)]
    long_video.main([*small, "--settings", "dual", "apart"])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["seed"]) for row in rows] == [
        ("dual", "0"),
        ("apart", "0"),
        ("dual", "1"),
        ("apart", "1"),
    ]
    assert all(row["read.right"] and row["motion.length"] for row in rows)
    # scenes are intended: there is no seam to find
    before = out.read_bytes()
    capsys.readouterr()
    long_video.main([*small, "--settings", "dual", "apart"])
    assert out.read_bytes() == before
    printed = capsys.readouterr().out
    assert " of " not in printed
    [line] = [line for line in printed.splitlines() if line.startswith("| apart | 2 |")]
    assert " to " in line


def test_the_order_is_cheap_videos_first_and_all_settings_of_a_video_together() -> None:
    options = argparse.Namespace(frames=[64, 32], scenes=1, seeds=1, settings=["dual", "dense"])
    assert [video[:2] for video in long_video.planned(options)] == [
        ("dual", 32),
        ("dense", 32),
        ("dual", 64),
        ("dense", 64),
    ]
