"""VBench's prompts as rows of a batch, clips for its scores, and the table beside the paper's."""

import json
from pathlib import Path

import numpy as np
import pytest
import vbench_scores as vbench
from oracles.command_line import Cli
from oracles.synthetic import panning, save

from vinfinity.media.mp4 import read_video


def test_prompts_become_rows_that_batch_accepts(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "all_dimension.txt"
    prompts.write_text("a red ball\n\na blue boat\na red ball\n")
    rows = tmp_path / "rows.jsonl"
    vbench.main(["prompts", str(prompts), "--samples", "2", "--out", str(rows)])
    assert "4 videos" in capsys.readouterr().out
    values = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [value["prompt"] for value in values] == ["a red ball"] * 2 + ["a blue boat"] * 2
    assert [value["seed"] for value in values] == [0, 1, 2, 3]
    folder, names = str(tmp_path / "videos"), "{prompt}-{sample}.mp4"
    code, out, err = cli("batch", str(rows), "--folder", folder, "--out", names, "--frames", "4", "--dry-run")
    assert code == 0, err
    for name in ("a red ball-0.mp4", "a red ball-1.mp4", "a blue boat-0.mp4", "a blue boat-1.mp4"):
        assert name in out


def test_prompts_of_vbenchs_own_json_are_read(tmp_path: Path) -> None:
    info = tmp_path / "VBench_full_info.json"
    info.write_text(json.dumps([{"prompt_en": "a cat", "dimension": ["color"]}, {"prompt_en": "a cat"}]))
    assert vbench.read_prompts(info) == ["a cat"]


def test_clips_of_16_frames_cover_the_video_but_its_rest(tmp_path: Path) -> None:
    frames = panning(40, speed=2)
    clips = vbench.cut_clips(save(tmp_path / "a.mp4", frames), tmp_path)
    assert len(clips) == 2
    for number, clip in enumerate(clips):
        shown = read_video(clip)
        assert len(shown) == 16
        assert np.abs(shown.astype(float) - frames[16 * number : 16 * (number + 1)]).mean() < 3


def test_the_table_has_the_papers_lines_and_says_what_was_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.json"
    vbench.main(["table", "--scores", str(scores)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| **vinfinity**") for line in lines) == 3
    assert sum("not run" in line for line in lines) == 3
    assert "| Video-Infinity | 192 | 91.32 | 92.93 | 97.40 | 95.55 | 77.78 | 55.49 | 66.93 |" in lines
    scores.write_text(json.dumps({"192": {"temporal_flickering": 0.9812}}))
    vbench.main(["table", "--scores", str(scores)])
    [own] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("| **vinfinity** | 192")
    ]
    assert (
        own == "| **vinfinity** | 192 | not run | not run | 98.12 | not run | not run | not run | not run |"
    )


def test_scores_without_the_package_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        vbench.main(["score", str(tmp_path), "--frames", "64", "--scores", str(tmp_path / "scores.json")])
    assert "pip install vbench" in str(ended.value)
    assert "\n" not in str(ended.value)
