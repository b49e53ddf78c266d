"""The harness of the study of long videos: it resumes, reads clips as the world's recogniser does, and tests pairs."""

import argparse
import csv
from pathlib import Path

import long_video
import numpy as np
import pytest

import vinfinity
from vinfinity.config.settings import AttentionConfig


@pytest.mark.parametrize("setting", long_video.VARIANTS)
def test_every_setting_of_the_study_is_accepted(setting: str) -> None:
    settings = long_video.settings_of(long_video.VARIANTS[setting], {"steps": 2})
    config = vinfinity.load_config(prompt="a red ball", frames=96, **settings)
    assert (config.frames, config.steps) == (96, 2)


def test_settings_differ_from_the_papers_schedule_only_where_they_say_so() -> None:
    schedules = {
        name: vinfinity.load_config(prompt="a", **long_video.settings_of(variant, {})).attention.schedule
        for name, variant in long_video.VARIANTS.items()
    }
    paper = AttentionConfig(trained_frames=16).schedule
    assert [name for name, schedule in schedules.items() if schedule != paper] == [
        "unbiased",
        "early-bias",
        "late-bias",
        "bias-2",
        "t-600",
        "t-900",
    ]


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
    small = ["--frames", "32", "--scenes", "2", "--seeds", "1", "--steps", "1", "--out", str(out)]
    long_video.main([*small, "--settings", "dual", "apart"])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["scene"]) for row in rows] == [
        ("dual", "0"),
        ("apart", "0"),
        ("dual", "1"),
        ("apart", "1"),
    ]
    assert {(row["steps"], row["guidance"]) for row in rows} == {("1", "1.0")}
    # a setting that cuts on purpose is measured like all others
    assert all(row["read.right"] and row["motion.length"] and row["seams.ratio"] for row in rows)
    before = out.read_bytes()
    capsys.readouterr()
    long_video.main([*small, "--settings", "dual", "apart"])
    assert out.read_bytes() == before
    printed = capsys.readouterr().out
    assert not any(line.startswith("1 of ") for line in printed.splitlines())
    means, differences = [line for line in printed.splitlines() if line.startswith("| `apart` | 2 |")]
    assert " to " in means
    assert " to " in differences
    # other steps and guidance are other videos
    other = [*small, "--guidance", "2", "--settings", "dual"]
    long_video.main(other)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["guidance"] for row in rows] == ["1.0"] * 4 + ["2.0"] * 2
    assert len({row["weights"] for row in rows}) == 1
    assert "### 32 frames, 1 steps, guidance 2, weights " in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["freenoise", "rank-norm"])
def test_settings_that_are_no_options_make_videos_that_differ(setting: str) -> None:
    given = {"steps": 1, "guidance": 1.0}
    [scene] = long_video.scenes(1)
    caption = long_video._world().caption(scene)
    videos = [
        long_video.generate(long_video.VARIANTS[name], caption, frames=32, seed=0, given=given)
        for name in ("dual", setting)
    ]
    assert (videos[0].latents - videos[1].latents).abs().max() > 1e-3


def test_lines_of_another_version_are_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "old.csv"
    out.write_text("setting,frames,scene,seed,seconds\ndual,96,0,0,60\n")
    with pytest.raises(SystemExit) as ended:
        long_video.main(["--summary", "--out", str(out)])
    assert (
        str(ended.value)
        == f"error: --out: {out} has lines without steps, guidance, weights, processor; name a new file"
    )


def test_videos_of_fewer_than_two_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="at least 32"):
        long_video.main(["--frames", "16", "--out", str(tmp_path / "a.csv")])


def test_the_order_is_cheap_videos_first_and_all_settings_of_a_video_together() -> None:
    options = argparse.Namespace(frames=[64, 32], scenes=1, seeds=1, settings=["dual", "dense"])
    config = vinfinity.load_config(prompt="a red ball", steps=12)
    assert [video[:-1] for video in long_video.planned(options, config)] == [
        ("dual", 32, 0, 0, 12, 1.0),
        ("dense", 32, 0, 0, 12, 1.0),
        ("dual", 64, 0, 0, 12, 1.0),
        ("dense", 64, 0, 0, 12, 1.0),
    ]


def test_the_page_of_the_study_explains_every_setting() -> None:
    page = (long_video.ROOT / "docs" / "proof" / "long-video.md").read_text(encoding="utf-8")
    assert [name for name in long_video.VARIANTS if f"`{name}`" not in page.partition("## How")[0]] == []
