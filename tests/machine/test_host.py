"""Processor, folders and variables."""

import os
import tempfile
from pathlib import Path

import pytest

from vinfinity.machine.host import find_folders, find_network, find_processor, find_variables

XEON = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) 6975P-C\nflags\t\t: fpu avx2 avx512f amx_bf16\n"
GRACE = "processor\t: 0\nFeatures\t: fp asimd sve\n"


def test_the_processor_is_named_with_its_widest_instructions(tmp_path: Path) -> None:
    (tmp_path / "xeon").write_text(XEON, encoding="utf-8")
    (tmp_path / "grace").write_text(GRACE, encoding="utf-8")
    xeon = find_processor(tmp_path / "xeon")
    assert (xeon.name, xeon.vectors) == ("Intel(R) Xeon(R) 6975P-C", "AMX")
    assert xeon.usable == len(os.sched_getaffinity(0))
    assert find_processor(tmp_path / "grace").vectors == "SVE"
    assert find_processor(tmp_path / "nowhere").name


def test_variables_that_change_runs_are_found_and_secrets_are_not() -> None:
    environment = {"RANK": "0", "NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_secret", "PATH": "/bin"}
    environment |= {"TORCH_NCCL_BLOCKING_WAIT": "1", "SLURM_NTASKS": "8", "SLURM_CONF": "/etc"}
    environment |= {"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "1"}
    assert list(find_variables(environment)) == [
        "HIP_VISIBLE_DEVICES",
        "NCCL_DEBUG",
        "RANK",
        "ROCR_VISIBLE_DEVICES",
        "SLURM_NTASKS",
        "TORCH_NCCL_BLOCKING_WAIT",
    ]


def test_a_folder_that_does_not_exist_yet_is_judged_by_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {folder.use: folder for folder in find_folders(tmp_path / "share" / "models")}
    assert folders["models"].path == str(tmp_path)
    assert folders["working folder"].path == str(tmp_path)
    assert all(folder.writable for folder in folders.values())


def test_a_place_that_is_no_folder_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {folder.use: folder for folder in find_folders(Path("/dev/null/models"))}
    assert not folders["models"].writable


def test_a_machine_without_any_temporary_folder_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/null"])
    monkeypatch.setenv("TMPDIR", "/dev/null")
    folders = {folder.use: folder for folder in find_folders(Path("models"))}
    assert not folders["temporary files"].writable


def test_this_machine_can_connect_to_itself() -> None:
    network = find_network()
    assert network.loopback == ""
    assert "lo" in network.interfaces
