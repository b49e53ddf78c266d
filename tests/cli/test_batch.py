"""The command `vinfinity batch`: what it lists, what it makes, and what it refuses before torch is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.command_line import Cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball\na blue boat\n")
    return path


def small(model: Path) -> list[str]:
    return ["frames=2", "size=32x32", "steps=1", "device=cpu", f"model={model}"]


def test_videos_go_into_a_folder_named_after_the_file(prompts: Path, model_folder: Path, cli: Cli) -> None:
    code, out, err = cli("batch", "prompts.txt", *small(model_folder), "--seeds", "0:2")
    assert code == 0, err
    assert sorted(path.name for path in Path("prompts").glob("*.mp4")) == [
        "0001-a-red-ball-0.mp4",
        "0001-a-red-ball-1.mp4",
        "0002-a-blue-boat-0.mp4",
        "0002-a-blue-boat-1.mp4",
    ]
    assert out.startswith("videos  4 made\nfolder  prompts\ntime ")
    code, out, err = cli("batch", "prompts.txt", *small(model_folder), "--seeds", "0:3")
    assert (code, err.splitlines()[0]) == (0, "4 of 6 videos are finished already")
    assert out.startswith("videos  2 made\n        4 finished before\n")


def test_finished_videos_of_other_settings_are_named_and_made_again_on_request(
    prompts: Path, model_folder: Path, cli: Cli
) -> None:
    command = ["batch", "prompts.txt", *small(model_folder)]
    cli(*command)
    code, out, err = cli(*command, "video.crf=40")
    assert (code, "2 finished before" in out) == (0, True)
    assert err.startswith("warning: video.crf: 40 (command line, for prompts.txt, row 1, line 1) is not what")
    assert "`vinfinity decode prompts/0001-a-red-ball-0.run --overwrite video.crf=40`" in err
    assert "(and 1 more row)" in err
    assert cli(*command, "video.crf=40", "--overwrite")[1].startswith("videos  2 made\n")
    code, out, err = cli(*command, "video.crf=40", "--overwrite")
    assert ("2 finished before" in out, "warning" in err) == (True, False)
    assert Path("prompts/0001-a-red-ball-0.run/events.jsonl").read_text().count('"event": "step"') == 1


def test_a_seed_beside_seeds_is_refused(prompts: Path, model_folder: Path, cli: Cli) -> None:
    message = cli.refused("batch", "prompts.txt", *small(model_folder), "--seed", "5", "--seeds", "0:1")
    assert message.startswith("seed: 5 (--seed, for prompts.txt, row 1, line 1) conflicts with --seeds; ")


def test_a_dry_run_lists_the_videos_and_makes_nothing(prompts: Path, model_folder: Path, cli: Cli) -> None:
    arguments = ["batch", "prompts.txt", *small(model_folder), "--part", "2/2", "--dry-run"]
    code, out, _ = cli(*arguments)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["video", "seed", "frames", "size", "steps", "prompt"]
    assert lines[1] == ["0002-a-blue-boat-0.mp4", "0", "2", "32x32", "1", "a", "blue", "boat"]
    assert len(lines) == 2
    assert not Path("prompts").exists()
    cli(*arguments[:-1])
    assert cli(*arguments)[1].splitlines()[1].split()[1] == "finished"


def test_a_dry_run_finds_what_only_the_model_can_tell(prompts: Path, model_folder: Path, cli: Cli) -> None:
    rows = [{"prompt": "x"}, {"prompt": "y", "reuse": {"interval": 2, "depth": 9}}]
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    message = cli.refused("batch", "rows.jsonl", *small(model_folder), "--dry-run")
    assert message.startswith("reuse.depth: 9 (rows.jsonl, row 2, line 2) leaves nothing to reuse")
    assert cli.refused("batch", "rows.jsonl", *small(model_folder)) == message
    assert not Path("rows").exists()


def test_a_template_in_a_configuration_is_one(prompts: Path, model_folder: Path, cli: Cli) -> None:
    Path("all.yaml").write_text('out: "{slug}/{sample}.mp4"\nsteps: 1\n')
    code, _, err = cli("batch", "prompts.txt", "-c", "all.yaml", *small(model_folder), "--folder", "v")
    assert code == 0, err
    assert sorted(str(path) for path in Path("v").glob("*/*.mp4")) == [
        "v/a-blue-boat/0.mp4",
        "v/a-red-ball/0.mp4",
    ]


def test_an_unfinished_batch_says_how_to_go_on(prompts: Path, model_folder: Path, cli: Cli) -> None:
    Path("prompts").mkdir()
    Path("prompts/prompts.batch.jsonl").mkdir()
    message = cli.refused("batch", "prompts.txt", *small(model_folder), code=4)
    assert "prompts.batch.jsonl" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.txt"], "FILE: none.txt does not exist; check the path"),
        (["prompts.txt", "--seeds", "4"], "--seeds: 4 is not a range of seeds; write it as FROM:TO, such as 0:4"),
        (["prompts.txt", "--part", "9/8"], "--part: 9/8 is beyond the last part; write it as K/N"),
        (["prompts.txt", "--out", "{slug}"], "out: {slug} (--out, for prompts.txt, row 1, line 1) does not end"),
        (["prompts.txt", "--out", "a.mp4"], "out: a.mp4 (prompts.txt, row 2, line 2) is also the name for prompts.txt"),
        (["prompts.txt", "--folder", "prompts.txt"], "out: "),
        (["prompts.txt", "--frames", "0"], "frames: 0 (--frames, for prompts.txt, row 1, line 1) is less than 1"),
        (["prompts.txt", "setps=3"], "setps: 3 (command line, for prompts.txt, row 1, line 1) is an unknown setting"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_torch_is_loaded(
    arguments: list[str], said: str, prompts: Path
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vinfinity", "batch", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    lines = done.stderr.splitlines()
    errors = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == 2
    assert errors[-1].startswith("error: ")
    assert any(line.startswith(f"error: {said}") for line in errors), errors
    assert not any(line.endswith("| torch") for line in lines)
    assert not (prompts.parent / "prompts").exists()


def test_a_setting_without_effect_gives_one_warning(prompts: Path, model_folder: Path, cli: Cli) -> None:
    code, _, err = cli("batch", "prompts.txt", *small(model_folder), "--negative", "blur", "guidance=1")
    assert code == 0
    assert err.count("negative: has no effect: guidance is 1; raise it above 1") == 1
