"""torch as the doctor sees it, whole and broken."""

import functools
from pathlib import Path

import pytest
import torch
from oracles.launchers import TORCHRUN
from oracles.machines import install_broken
from oracles.pretend.device import PretendCuda

from vinfinity.machine.engine import attention_backends, find_engine, find_versions
from vinfinity.machine.probe import Failed, attempt, in_child
from vinfinity.machine.video import find_video

CPU = torch.device("cpu")


def test_the_versions_are_those_of_torch() -> None:
    found = find_versions()
    assert (found.torch, found.cuda) == (torch.__version__, torch.version.cuda)


@pytest.mark.parametrize(("number", "version"), [(8902, "8.9.2"), (90100, "9.1.0"), (91501, "9.15.1")])
def test_cudnn_is_named_as_its_makers_do(monkeypatch: pytest.MonkeyPatch, number: int, version: str) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: number)
    assert find_versions().cudnn == version


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_says_which_attention_it_picks(dtype: torch.dtype) -> None:
    picked = attention_backends(CPU, dtype)
    assert {picked.temporal, picked.spatial} <= {"math", "flash", "efficient", "cudnn"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_what_a_run_would_use_is_asked_of_the_code_that_picks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use = find_engine(device="auto", ranks=None).use
    assert not isinstance(use, Failed)
    assert (use.device, use.dtype, use.refused) == ("cpu", "fp32", "")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    use = find_engine(device="cuda", ranks=None).use
    assert not isinstance(use, Failed)
    assert use.refused.startswith(
        "device: cuda found 0 CUDA GPUs for 2 ranks; add --device cpu to run 2 ranks"
    )
    use = find_engine(device="cpu", ranks=3).use
    assert not isinstance(use, Failed)
    assert "3 is not the 8 ranks that torchrun started" in use.refused


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ("No CUDA GPUs are available", ""),
        (
            "The NVIDIA driver on your system is too old (found version 11040).",
            "RuntimeError: The NVIDIA driver",
        ),
    ],
)
def test_why_cuda_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch, error: str, fault: str) -> None:
    def init() -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    found = find_engine()
    assert found.gpus == ()
    assert found.fault.startswith(fault)
    assert bool(found.fault) == bool(fault)


@pytest.mark.parametrize(
    ("package", "probe"), [("torch", find_engine), ("av", find_video)], ids=["torch", "av"]
)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "raise ImportError('libcudart.so.13: cannot open shared object file')",
            "ImportError: libcudart.so.13",
        ),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
    ids=["raises", "crashes"],
)
def test_a_broken_library_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    probe: functools.partial[object],
    code: str,
    reason: str,
) -> None:
    install_broken(tmp_path, package, code)
    monkeypatch.syspath_prepend(tmp_path)
    found = attempt(in_child, probe)
    assert isinstance(found, Failed)
    assert reason in found.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_a_gpu_without_virtual_memory_is_tried_as_runs_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with PretendCuda(virtual_memory=False):
        found = find_engine()
    assert [gpu.fault for gpu in found.gpus] == ["", ""]
    assert not isinstance(found.use, Failed)
    assert found.use.allocator == "expandable_segments:False"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_gpus_are_described_and_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with PretendCuda(devices=3):
        found = find_engine(ranks=3)
    assert found.fault == ""
    assert [gpu.index for gpu in found.gpus] == [0, 1, 2]
    assert [(gpu.name, gpu.fault) for gpu in found.gpus] == [("Pretend GPU", "")] * 3
    assert all(gpu.free is not None and gpu.free <= gpu.memory for gpu in found.gpus)
