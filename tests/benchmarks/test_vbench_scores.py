"""VBench's prompts as rows of a batch, clips for its scores, and the table beside the paper's.

data/ holds results that the package, version 0.1.5, wrote for clips of `mini`: flicker as it is, imaging quality and
dynamic degree with random weights.
"""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import vbench_scores as vbench
from oracles.command_line import Cli
from oracles.synthetic import panning, save
from oracles.video import read_video

import vinfinity
from vinfinity.media.reader import open_reader


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
    video = save(tmp_path / "a.mp4", panning(40, speed=2))
    whole = np.stack(list(open_reader(video)))
    clips = vbench.cut_clips(video, tmp_path)
    assert len(clips) == 2
    for number, clip in enumerate(clips):
        assert len(read_video(clip)) == 16
        shown = np.stack(list(open_reader(clip)))
        assert np.array_equal(shown, whole[16 * number : 16 * (number + 1)])


def opencv_frames(path: Path) -> np.ndarray:
    """Return the frames of a video as VBench reads them."""
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1])
    return np.stack(frames)


def test_vbench_sees_the_frames_of_the_video_and_so_the_same_flicker(tmp_path: Path) -> None:
    """Of clips in YUV, OpenCV showed others: 2 levels apart on average, and flicker by 0.0001."""
    noise = np.random.default_rng(0).integers(-40, 40, size=(16, 48, 64, 3))
    frames = (panning(16, height=48, width=64) + noise).clip(0, 255).astype(np.uint8)
    video = save(tmp_path / "a.mp4", frames)
    [clip] = vbench.cut_clips(video, tmp_path)
    shown = opencv_frames(clip)
    assert np.array_equal(shown[..., ::-1], np.stack(list(open_reader(video))))
    # vbench/temporal_flickering.py
    pairs = [cv2.absdiff(a.astype(np.float32), b.astype(np.float32)).mean() for a, b in pairwise(shown)]
    score = (255.0 - np.mean(pairs)) / 255.0
    assert vinfinity.evaluate(video)["flicker.score"] == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("dimension", "clips", "score"),
    [
        ("temporal_flickering", 4, 0.9526740205054189),
        ("imaging_quality", 1, -0.0038390411995351315),
        ("dynamic_degree", 1, 0.0),
    ],
)
def test_results_that_the_package_wrote_are_read(dimension: str, clips: int, score: float) -> None:
    file = vbench.result_file(Path(__file__).parent / "data", dimension)
    assert vbench.read_result(file, dimension, clips=clips) == score
    # the package passes over clips that it cannot read
    with pytest.raises(ValueError, match=f"{clips} of 9 clips were scored"):
        vbench.read_result(file, dimension, clips=9)


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
    """Return the one line by which the script refuses."""
    with pytest.raises(SystemExit) as ended:
        vbench.main([*arguments])
    assert "\n" not in str(ended.value)
    return str(ended.value)


# ---- the package, as its version 0.1.5 is ----

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
        if os.environ.get('OFFLINE') in dimension_list:
            raise FileNotFoundError('no such program: wget')
        clips = [{'video_path': clip, 'video_results': 0.5} for clip in sorted(os.listdir(videos_path))]
        results = {one: [66.5 if one == 'imaging_quality' else 0.5, clips] for one in dimension_list}
        with open(os.path.join(self.output_path, name + '_eval_results.json'), 'w') as file:
            json.dump(results, file)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a package of that name and interface, in the environment of another Python. Returns its file."""
    folder = tmp_path / "packages" / "vbench"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "VBench_full_info.json").write_text("[]")
    for dimension in vbench.DIMENSIONS:
        (folder / f"{dimension}.py").write_text("")
    paths = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.parent), *([paths] if paths else [])]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return folder / "__init__.py"


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


def test_a_dimension_without_its_weights_does_not_take_the_others_with_it(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    videos, scores = tmp_path / "videos", tmp_path / "scores.json"
    save(videos / "a-0.mp4", panning(16, height=48, width=64))
    both = ["dynamic_degree", "temporal_flickering"]
    # those of other videos, perhaps
    scores.write_text(json.dumps({"16": {"dynamic_degree": 0.1, "aesthetic_quality": 0.2}}))
    monkeypatch.setenv("OFFLINE", "dynamic_degree")
    options = ("--frames", "16", "--device", "cpu", "--scores", str(scores))
    line = refused("score", str(videos), *options, "--dimensions", *both)
    assert "dimensions: dynamic_degree could not be scored" in line
    out, err = capfd.readouterr()
    assert "temporal_flickering: 0.5000, the mean of 1 clip\n" in out
    assert "dynamic_degree: not scored (FileNotFoundError: no such program: wget)\n" in err
    assert json.loads(scores.read_text()) == {"16": {"aesthetic_quality": 0.2, "temporal_flickering": 0.5}}


def test_what_the_package_cannot_score_is_one_line(package: Path, tmp_path: Path) -> None:
    options = (
        "--scores",
        str(tmp_path / "scores.json"),
        "--device",
        "cpu",
        "--dimensions",
        "imaging_quality",
    )
    (tmp_path / "none").mkdir()
    assert "has no .mp4 files" in refused("score", str(tmp_path / "none"), "--frames", "9", *options)
    save(tmp_path / "short" / "a-0.mp4", panning(9, height=48, width=64))
    assert "has no video of 16 frames" in refused("score", str(tmp_path / "short"), "--frames", "9", *options)
    line = refused("score", str(tmp_path / "short"), "--frames", "16", *options)
    assert "a-0.mp4 has 9 frames, not 16; score videos of one length" in line


def test_old_and_broken_packages_are_one_line(package: Path, tmp_path: Path) -> None:
    scores = ("--scores", str(tmp_path / "scores.json"))
    arguments = ("score", str(tmp_path), "--frames", "16", "--device", "cpu", *scores)
    # as clip does beside setuptools of 2026
    (package.parent / "aesthetic_quality.py").write_text("import a_package_that_is_missing\n")
    line = refused(*arguments)
    assert "--dimensions: aesthetic_quality cannot be imported (No module named 'a_package_that_is_" in line
    assert "or leave it out by --dimensions" in line
    package.write_text(PACKAGE.replace("mode='vbench_standard', **kwargs", "**kwargs"))
    assert "older than 0.1.2" in refused(*arguments)
    package.write_text("import a_package_that_is_missing\n")
    line = refused(*arguments)
    assert (
        "vbench cannot be imported (No module named 'a_package_that_is_missing'); in an environment of"
        in line
    )
    package.write_text("import os; os._exit(9)\n")
    assert f"vbench: {sys.executable} ended with exit code 9; see what it printed" in refused(*arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_scores_without_a_gpu_are_refused_before_clips_are_made(package: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    line = refused("score", str(tmp_path), "--frames", "16", "--scores", str(scores))
    assert "--device: cuda is not there; use a machine with a GPU" in line
    assert not (tmp_path / "vbench-16" / "clips").exists()


def test_scores_without_the_package_are_one_line(tmp_path: Path) -> None:
    arguments = ("score", str(tmp_path), "--frames", "64", "--scores", str(tmp_path / "scores.json"))
    assert refused(*arguments).startswith(
        "error: package: vbench is not installed; in an environment of its own, pip install vbench torchvision"
    )
    line = refused(*arguments, "--python", str(tmp_path / "bin" / "python"))
    assert "bin/python is not a program; name the Python of the environment with vbench" in line
