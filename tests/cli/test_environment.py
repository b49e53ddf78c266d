"""Commands in unusual environments: variables that launchers left behind, no home directory, closed or full folders."""

from pathlib import Path

import pytest
from oracles.command_line import Cli
from oracles.launchers import SRUN, TORCHRUN

import vinfinity

LEFT_BEHIND = [
    {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "n0", "MASTER_PORT": "29500"},
    TORCHRUN,
    {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
    SRUN,
    {"OMPI_COMM_WORLD_SIZE": "4"},
]


@pytest.fixture(params=LEFT_BEHIND, ids=["half of torchrun", "torchrun", "half of srun", "srun", "mpirun"])
def left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a launcher that started several processes."""
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    return request.param


@pytest.mark.usefixtures("left_behind")
def test_commands_that_start_no_ranks_ignore_what_a_launcher_left_behind(
    cli: Cli, model_folder: Path
) -> None:
    for command in (
        ["plan", "-p", "a", "--frames", "4", "--device", "cpu"],
        ["config", "gpus=3"],
        ["models", "list"],
        ["models", "show", str(model_folder)],
    ):
        code, _, err = cli(*command)
        assert (command, code, err) == (command, 0, "")


@pytest.mark.usefixtures("left_behind")
def test_python_ignores_what_a_launcher_left_behind(model_folder: Path) -> None:
    video = vinfinity.generate("a", model=model_folder, device="cpu", frames=2, steps=1)
    assert len(video.frames) == 2


def test_a_run_says_which_variables_to_unset(
    left_behind: dict[str, str], cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    run = [
        "generate",
        "-p",
        "a",
        "--model",
        str(model_folder),
        "--device",
        "cpu",
        "--gpus",
        "2",
        "--frames",
        "4",
    ]
    for more in ([], ["--dry-run"]):
        message = cli.refused(*run, "--out", str(tmp_path / "a.mp4"), *more)
        _, _, names = message.partition(" did not start this process, unset ")
        assert names
        assert set(names.split()) <= left_behind.keys()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "alone",
    [
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "12355"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["torchrun", "srun"],
)
def test_the_only_process_of_a_launcher_may_start_ranks(
    alone: dict[str, str], cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    run = [
        "generate",
        "-p",
        "a",
        "--model",
        str(model_folder),
        "--device",
        "cpu",
        "--gpus",
        "2",
        "--frames",
        "2",
    ]
    assert cli(*run, "--steps", "1", "--out", str(tmp_path / "a.mp4"), "--dry-run")[0] == 0
