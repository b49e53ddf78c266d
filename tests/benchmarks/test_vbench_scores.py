"""VBench's prompts as rows of a batch, clips for its scores, and the table beside the paper's."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
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


def refused(*arguments: str) -> str:
    """The one line by which the script refuses."""
    with pytest.raises(SystemExit) as ended:
        vbench.main([*arguments])
    assert "\n" not in str(ended.value)
    return str(ended.value)


# ---- the package, as its version 0.1.5 documents it ----

PACKAGE = """
import json, os
class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info_dir, self.output_path = device, full_info_dir, output_path
    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode='vbench_standard', **kwargs):
        assert mode == 'custom_input' and not prompt_list and not local and not kwargs
        # motion smoothness asks for equality with a text; the package's own evaluate.py passes a device
        assert not isinstance(self.device, str)
        assert os.path.isfile(self.full_info_dir)
        clips = sorted(os.listdir(videos_path))
        results = {one: [0.5, [{'video_path': clip} for clip in clips]] for one in dimension_list}
        results['imaging_quality'][0] = 66.5
        with open(os.path.join(self.output_path, name + '_eval_results.json'), 'w') as file:
            json.dump(results, file)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of that name and interface. Returns its file."""
    folder = tmp_path / "packages" / "vbench"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "VBench_full_info.json").write_text("[]")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "vbench", raising=False)
    yield folder / "__init__.py"
    sys.modules.pop("vbench", None)


def rewrite(package: Path, text: str) -> None:
    """Another version of the package."""
    package.write_text(text)
    sys.modules.pop("vbench", None)


def test_videos_are_scored_as_the_package_documents_it(package: Path, tmp_path: Path) -> None:
    videos, scores = tmp_path / "videos", tmp_path / "scores.json"
    save(videos / "a red ball-0.mp4", panning(33, height=48, width=64))
    stale = tmp_path / "vbench-33" / "clips" / "old-clip0000.mp4"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    vbench.main(["score", str(videos), "--frames", "33", "--device", "cpu", "--scores", str(scores)])
    found = json.loads(scores.read_text())["33"]
    assert list(found) == list(vbench.DIMENSIONS)
    assert found["subject_consistency"] == 0.5
    assert found["imaging_quality"] == pytest.approx(0.665)
    # no clip of an earlier call is scored
    assert sorted(path.name for path in stale.parent.iterdir()) == [
        "a red ball-0-clip0000.mp4",
        "a red ball-0-clip0001.mp4",
    ]


def test_what_the_package_cannot_score_is_one_line(package: Path, tmp_path: Path) -> None:
    scores = ("--scores", str(tmp_path / "scores.json"), "--device", "cpu")
    (tmp_path / "none").mkdir()
    assert "has no .mp4 files" in refused("score", str(tmp_path / "none"), "--frames", "9", *scores)
    save(tmp_path / "short" / "a-0.mp4", panning(9, height=48, width=64))
    assert "has no video of 16 frames" in refused("score", str(tmp_path / "short"), "--frames", "9", *scores)
    save(tmp_path / "a" / "a-0.mp4", panning(16, height=48, width=64))
    rewrite(package, PACKAGE.replace("json.dump(results, file)", "json.dump({}, file)"))
    line = refused("score", str(tmp_path / "a"), "--frames", "16", *scores)
    assert "has no scores (KeyError('subject_consistency'))" in line


def test_old_and_broken_packages_are_one_line(package: Path, tmp_path: Path) -> None:
    arguments = ("score", str(tmp_path), "--frames", "16", "--device", "cpu")
    rewrite(package, PACKAGE.replace("mode='vbench_standard', **kwargs", "**kwargs"))
    assert "older than 0.1.2" in refused(*arguments)
    rewrite(package, "import a_package_that_is_missing\n")
    line = refused(*arguments)
    assert "cannot be imported (No module named 'a_package_that_is_missing'); install what it needs" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_scores_without_a_gpu_are_refused_before_clips_are_made(package: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    line = refused("score", str(tmp_path), "--frames", "16", "--scores", str(scores))
    assert "--device: cuda is not there; use a machine with a GPU" in line
    assert not (tmp_path / "vbench-16").exists()


def test_scores_without_the_package_are_one_line(tmp_path: Path) -> None:
    line = refused("score", str(tmp_path), "--frames", "64", "--scores", str(tmp_path / "scores.json"))
    assert line.startswith(
        "error: package: vbench is needed for scores, and not installed; pip install vbench"
    )
