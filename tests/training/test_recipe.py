"""The recipe of the embedded model: which runs share a folder, and what happens to its stages."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles.processes import SECONDS, command_line

recipe = pytest.importorskip("recipe", reason="needs diffusers and transformers", exc_type=ImportError)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line with which the recipe refuses these arguments."""
    with pytest.raises(SystemExit) as refused:
        recipe.main(arguments)
    assert refused.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    "other",
    [
        (),
        ("--scale", "0.001", "--device", "cuda"),
        ("--scale", "0.001", "--keep", "vae"),
        ("--scale", "0.001", "--start", "shipped"),
    ],
    ids=["scale", "device", "keep", "start"],
)
def test_a_folder_holds_one_run_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: tuple[str, ...]
) -> None:
    trial = recipe.parse(["--work", str(tmp_path), "--scale", "0.001"])
    recipe.claim(trial)
    recipe.claim(trial)
    line = refusal(capsys, "--work", str(tmp_path), *other)
    assert line.startswith(f"error: --work: {tmp_path} holds another run")
    assert "0.001" in line
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "lock"}


def test_a_folder_whose_run_is_not_known_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "done").mkdir()
    assert "holds another run (with unknown options)" in refusal(capsys, "--work", str(tmp_path))


@pytest.mark.parametrize("cuda", [False, True])
def test_both_starts_name_their_stages_differently(cuda: bool) -> None:
    nothing, shipped = recipe.from_nothing(cuda), recipe.from_shipped(cuda)
    assert not {stage.name for stage in nothing} & {stage.name for stage in shipped}
    for start, stages in (("nothing", nothing), ("shipped", shipped)):
        assert recipe.LAST[start].rpartition("-")[0] in {stage.name for stage in stages}


@pytest.mark.parametrize("start", ["nothing", "shipped"])
def test_the_scale_of_a_trial_shrinks_the_painter_too(start: str) -> None:
    trial = recipe.parse(["--scale", "0.01", "--start", start])
    stages = recipe.from_nothing(False) if start == "nothing" else recipe.from_shipped(False)
    commands = [stage.command(trial) for stage in stages if "--paint" in stage.options]
    assert commands
    for command in commands:
        assert command[command.index("--painter-steps") + 1] == "25"
        assert command[command.index("--painter-frames") + 1] == "40"


def start(work: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Return a recipe that has just started a stage, and the process id of that stage."""
    command = [sys.executable, recipe.__file__, "--work", str(work), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + SECONDS
    while not (
        stages := [
            int(child) for child in children.read_text().split() if str(work) in command_line(int(child))
        ]
    ):
        assert process.poll() is None, "the recipe ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, stages[0]


def wait_until_free(work: Path) -> None:
    """Wait until no process holds this folder."""
    deadline = time.monotonic() + SECONDS
    with (work / "lock").open() as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert time.monotonic() < deadline, "the folder stays in use"
            time.sleep(0.01)


def test_sigterm_ends_the_stage_and_a_second_run_is_refused_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process, stage = start(tmp_path)
    assert f"error: --work: {tmp_path} is in use" in refusal(capsys, "--work", str(tmp_path))
    process.terminate()
    assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert not command_line(stage)
    wait_until_free(tmp_path)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the handlers of signals back."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_a_command_starts_ends_this_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    started = []

    class Popen(subprocess.Popen[bytes]):
        """Gets a signal when its process runs and the caller does not have it yet."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self.pid)
            os.kill(os.getpid(), number)

    with recipe.lock(tmp_path) as held:
        commands = recipe.Commands(held)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", Popen)
            with pytest.raises(SystemExit) as ended:
                commands.call([sys.executable, "-c", "import time; time.sleep(600)"])
        assert ended.value.code == 128 + number
        [pid] = started
        assert not command_line(pid)
        # and no other command is started
        with pytest.raises(SystemExit):
            commands.call([sys.executable, "-c", ""])


@pytest.mark.slow
def test_a_stage_that_outlives_its_recipe_keeps_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process, stage = start(tmp_path)
    process.kill()
    process.wait(SECONDS)
    assert f"error: --work: {tmp_path} is in use" in refusal(capsys, "--work", str(tmp_path))
    os.kill(stage, signal.SIGKILL)
    wait_until_free(tmp_path)
