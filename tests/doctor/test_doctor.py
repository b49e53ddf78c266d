"""`vinfinity doctor`, on this machine and with things broken around it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.command_line import Cli
from oracles.launchers import TORCHRUN
from oracles.machines import card_line, install_broken, install_nvidia_smi

# lines of a terminal
SCREEN = 40

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")


def names(out: str) -> list[str]:
    """Return the names of the faults in the doctor's JSON."""
    found: dict[str, Any] = json.loads(out)
    return [fault["name"] for fault in found["wrong"]]


def test_it_fits_on_a_screen_and_finds_nothing_wrong(cli: Cli) -> None:
    code, out, err = cli("doctor", "--device", "cpu")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= SCREEN
    for title in ("HERE", "USED", "WRONG"):
        assert f"{title}\n" in out
    for words in (torch.__version__, "mini", "libx264", "fp32", "gloo"):
        assert words in out


def test_leftovers_of_a_launcher_and_gpus_without_a_fitting_torch_are_errors(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, card_line(0), card_line(1)))
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    code, out, err = cli("doctor", "--json")
    assert code == 1
    assert err == "error: 3 faults would stop a run\n"
    assert names(out)[:3] == ["launcher", "refused", "cpu-torch"]
    found = json.loads(out)["here"]
    assert [card["name"] for card in found["nvidia"]["cards"]] == ["NVIDIA A100-SXM4-80GB"] * 2
    assert found["variables"]["WORLD_SIZE"] == "8"
    assert found["place"]["size"] == 8


def test_a_broken_torch_and_driver_are_named_and_all_else_is_shown(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_broken(tmp_path / "libraries", "torch", "raise ImportError('libcudart.so.13: cannot open')")
    install_broken(tmp_path / "libraries", "av", "import os; os.abort()")
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    mismatch = "Failed to initialize NVML: Driver/library version mismatch"
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, fails=mismatch))
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null")
    code, out, err = cli("doctor")
    assert (code, err) == (1, "error: 3 faults would stop a run\n")
    assert len(out.splitlines()) <= SCREEN
    wrong = out.partition("WRONG\n")[2]
    assert "torch cannot be used: ImportError: libcudart.so.13: cannot open; install it again" in wrong
    assert "PyAV cannot be used: the process was killed by SIGABRT" in wrong
    assert f"the NVIDIA driver does not work: nvidia-smi: {mismatch}" in wrong
    assert "/dev/null (models) cannot be written to" in wrong
    assert "models     mini" in out


def test_it_loads_no_torch_itself() -> None:
    program = "import sys; from vinfinity.doctor import facts, faults, report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.stdout == "False\n"


def test_a_number_of_ranks_is_checked(cli: Cli) -> None:
    code, out, _ = cli("doctor", "--json", "--gpus", "2", "--device", "cuda")
    assert code == 1
    assert names(out)[0] == "refused"
    assert "found 0 CUDA GPUs for 2 ranks" in json.loads(out)["used"]["refused"]
    assert cli.refused("doctor", "--gpus", "0").startswith("--gpus: ")
