"""Commands in unusual environments: variables that launchers left behind, no home directory, closed or full folders."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from oracles.command_line import Cli
from oracles.launchers import SRUN, TORCHRUN

import vinfinity
from vinfinity.errors import OutputError
from vinfinity.system.folders import data_folder, temporary_folder

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


# ---- folders ----

IMPORTED_FROM = os.pathsep.join(path for path in sys.path if Path(path).is_absolute())

# runs a command as a user whom /etc/passwd does not know, as containers do
STRANGER = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
needs_namespaces = pytest.mark.skipif(
    subprocess.run([*STRANGER, "true"], capture_output=True, check=False).returncode != 0,
    reason="user namespaces are not permitted here",
)


def as_stranger(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`vinfinity ARGUMENTS` by a user without a name or a home directory, and with an empty environment."""
    environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORTED_FROM}
    return subprocess.run(
        [*STRANGER, sys.executable, "-m", "vinfinity", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_namespaces
def test_a_run_needs_no_home_directory(model_folder: Path, tmp_path: Path) -> None:
    run = ["generate", "-p", "a", "--model", str(model_folder), "--frames", "2", "--steps", "1"]
    done = as_stranger(*run, "--device", "cpu", folder=tmp_path)
    assert (done.returncode, "error" in done.stderr) == (0, False)
    assert (tmp_path / "a.mp4").exists()


@needs_namespaces
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["generate", "-p", "a", "--out", "~/a.mp4"], "out"),
        (["generate", "-p", "a", "--model", "~/model"], "model"),
        (["generate", "-p", "a", "--decoder", "~/vae"], "decoder"),
        (["generate", "-p", "a", "noise_from=~/noise.safetensors"], "noise_from"),
        (["generate", "-p", "a", "save_latents=~/latents.safetensors"], "save_latents"),
        (["resume", "~/a.run"], "run"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_path_in_a_home_directory_that_does_not_exist_is_refused(
    arguments: list[str], field: str, tmp_path: Path
) -> None:
    done = as_stranger(*arguments, folder=tmp_path)
    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"error: {field}: ~/")
    assert line.endswith("needs a home directory, and there is none; write the path without ~, or set HOME")


@pytest.mark.parametrize(
    ("xdg", "home", "expected"),
    [
        ("{0}/data", "{0}", "{0}/data/vinfinity"),
        ("", "{0}", "{0}/.local/share/vinfinity"),
        ("data", "{0}", "{0}/.local/share/vinfinity"),
        ("{0}/missing", "/nowhere", "{0}/missing/vinfinity"),
        # a folder that cannot be looked into, as the home directory of another user
        ("{0}/loop", "{0}", "{0}/.local/share/vinfinity"),
        ("{0}/loop", "{0}/loop", "{0}/tmp/vinfinity-{1}"),
    ],
)
def test_models_are_kept_in_the_first_folder_that_can_be_looked_into(
    xdg: str, home: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, value in {"XDG_DATA_HOME": xdg, "HOME": home, "TMPDIR": "{0}/tmp"}.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert str(data_folder()) == expected.format(tmp_path, os.getuid())


def test_without_a_place_for_temporary_files_the_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    remedy = "/proc/nowhere: temporary files cannot be written .*; set TMPDIR to another folder"
    with pytest.raises(OutputError, match=remedy), temporary_folder():
        pass


@pytest.mark.parametrize(
    "command", [["plan", "-p", "a"], ["generate", "-p", "a"], ["generate", "-p", "a", "--out", "/tmp/a.mp4"]]
)
def test_a_deleted_working_directory_is_named(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, str(tmp_path / "gone"), sys.executable, "-m", "vinfinity", *command],
        env={**os.environ, "PYTHONPATH": IMPORTED_FROM},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: working directory: {tmp_path}/gone no longer exists; change to another directory"
    )
