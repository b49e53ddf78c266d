"""Requests to end that come at chosen moments of a command: none is lost, and each has its exit code.

`make test-signals` tries all moments, from the start of a process to its end.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracles.runs import exit_code, latents
from oracles.video import read_video
from torch import Tensor

# runs `vinfinity`, and sends its process group a signal as soon as Python reports an event: an import, a file that is
# opened or renamed, a process that is started (https://docs.python.org/3/library/audit_events.html)
PROGRAM = """
import os, re, sys
event, pattern, number = sys.argv[1:4]
del sys.argv[1:4]
sent = []

def look(name, arguments):
    if name == event and not sent and any(re.search(pattern, str(argument)) for argument in arguments):
        sent.append(name)
        os.killpg(0, int(number))

sys.addaudithook(look)
from vinfinity.cli import program
program()
"""
BEFORE = "stopped before anything was computed"


def interrupted(event: str, pattern: str, number: signal.Signals, *command: str) -> tuple[int, str]:
    """Exit code and last line of a command that gets a signal at an event."""
    program = [sys.executable, "-c", PROGRAM, event, pattern, str(int(number)), *command]
    done = subprocess.run(program, capture_output=True, text=True, check=False, start_new_session=True)
    lines = done.stderr.splitlines() or [""]
    assert "Traceback" not in done.stderr
    return done.returncode, lines[-1].removeprefix("error: ")


def command(model: Path, out: Path) -> list[str]:
    """Return a short run with a checkpoint after each step."""
    options = ["--frames", "6", "--steps", "3", "--device", "cpu", "checkpoint.every=1 steps"]
    return ["generate", "-p", "a", "--model", str(model), "--out", str(out), *options]


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Return the latents of a run that nothing disturbs."""
    out = tmp_path_factory.mktemp("undisturbed") / "a.mp4"
    assert exit_code(*command(model_folder, out)) == 0
    return latents(out.with_suffix(".run"))


@pytest.mark.parametrize(
    ("event", "pattern", "number", "code", "line"),
    [
        ("import", "^typer$", signal.SIGINT, 130, "interrupted"),
        ("import", "^typer$", signal.SIGTERM, 75, BEFORE),
        ("import", "^torch$", signal.SIGINT, 130, "interrupted"),
        ("import", r"^torch\.", signal.SIGUSR1, 75, BEFORE),
        ("open", "model_index.json", signal.SIGHUP, 75, BEFORE),
    ],
)
def test_before_a_run_begins_a_request_ends_it_at_once(
    event: str, pattern: str, number: signal.Signals, code: int, line: str, model_folder: Path, tmp_path: Path
) -> None:
    assert interrupted(event, pattern, number, *command(model_folder, tmp_path / "a.mp4")) == (code, line)
    assert not (tmp_path / "a.run").exists()


@pytest.mark.parametrize(
    ("event", "pattern", "number", "phase"),
    [
        ("os.rename", r"config\.yaml$", signal.SIGINT, "before anything was computed"),
        ("os.rename", r"step-0001/manifest\.json$", signal.SIGTERM, "after step 2 of 3"),
        ("os.rename", r"latents/manifest\.json$", signal.SIGUSR1, "while decoding"),
        ("open", r"decoded\.mp4$", signal.SIGINT, "while decoding"),
    ],
)
def test_a_run_that_was_asked_to_end_resumes_to_the_same_latents(
    event: str,
    pattern: str,
    number: signal.Signals,
    phase: str,
    model_folder: Path,
    undisturbed: Tensor,
    tmp_path: Path,
) -> None:
    code, line = interrupted(event, pattern, number, *command(model_folder, tmp_path / "a.mp4"))
    assert code == 75
    assert re.match(rf"stopped {phase}; `vinfinity resume .*a\.run` resumes the run$", line)
    assert exit_code("resume", str(tmp_path / "a.run")) == 0
    assert torch.equal(latents(tmp_path / "a.run"), undisturbed)


def test_a_request_to_a_run_that_has_done_its_work_changes_nothing(
    model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.mp4"
    code, _ = interrupted("os.rename", r"a\.mp4$", signal.SIGTERM, *command(model_folder, out))
    assert code == 0
    assert len(read_video(out)) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_request_while_a_launcher_starts_its_ranks_ends_all_of_them(
    number: signal.Signals, model_folder: Path, tmp_path: Path
) -> None:
    run = [*command(model_folder, tmp_path / "a.mp4"), "--gpus", "2"]
    assert interrupted("subprocess.Popen", "vinfinity.parallel.started", number, *run) == (75, BEFORE)


def test_converting_a_model_cleans_up_when_it_is_interrupted(model_folder: Path, tmp_path: Path) -> None:
    convert = ["models", "convert", str(model_folder), str(tmp_path / "new")]
    assert interrupted("open", r"\.vinfinity-\w+\.part/unet", signal.SIGTERM, *convert) == (75, "stopped")
    assert list(tmp_path.iterdir()) == []
