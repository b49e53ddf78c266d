"""The device of a rank: which GPU it takes, and what is said where that does not work."""

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from oracles.pretend.device import PretendCuda

from vinfinity.errors import InputError
from vinfinity.parallel import devices
from vinfinity.parallel.devices import (
    VISIBLE,
    GpuFacts,
    PeakMemory,
    check_gpus,
    check_nccl,
    fallen_back,
    gpu_facts,
    peak_memory,
    pick_device,
    select_device,
)
from vinfinity.parallel.place import Place
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.pytorch import uses_expandable_segments

GIB = 2**30


def enumerate_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    """Let CUDA list that many GPUs."""
    patch.setattr(torch._C, "_cuda_getDeviceCount", lambda: count, raising=False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return a torch that finds one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    enumerate_gpus(monkeypatch, 1)
    for name in VISIBLE:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def place_of(launcher: str, *, local_size: int, local_rank: int = 0) -> Place:
    """Return a rank on a single node."""
    return Place(local_rank, local_size, local_rank, local_size, "localhost", 1, launcher=launcher)


@pytest.mark.parametrize("variable", VISIBLE)
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_tasks_of_launchers_that_see_one_gpu_each_take_it(
    launcher: str, variable: str, gpus: pytest.MonkeyPatch
) -> None:
    gpus.setenv(variable, "3")
    for wanted in ("auto", "cuda"):
        picked = pick_device(wanted, place=place_of(launcher, local_rank=3, local_size=8))
        assert picked == torch.device("cuda", 0)


def test_ranks_without_a_gpu_each_are_refused_with_the_remedy_of_their_launcher(
    gpus: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        InputError, match=r"found 1 CUDA GPU for 8 ranks; .*--gpus-per-node 8 --gpu-bind=none"
    ):
        pick_device("cuda", place=place_of("srun", local_rank=3, local_size=8))
    with pytest.raises(InputError, match=r"found 1 CUDA GPU for 2 ranks; add --device cpu to run 2 ranks"):
        pick_device("auto", place=place_of("torchrun", local_size=2))
    gpus.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(
        InputError, match=r"1 CUDA GPU \(CUDA_VISIBLE_DEVICES='0'\) for 2 ranks; add --device cpu"
    ):
        pick_device("auto", place=place_of("vinfinity", local_size=2))
    enumerate_gpus(gpus, 3)
    with pytest.raises(InputError, match=r"found 3 CUDA GPUs.* for 4 ranks; .*--gpus-per-node 4"):
        pick_device("auto", place=place_of("srun", local_rank=1, local_size=4))


def test_gpus_that_only_the_drivers_management_library_counts_are_not_used(gpus: pytest.MonkeyPatch) -> None:
    # eight GPUs in MIG mode, of which CUDA lists one slice
    gpus.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(InputError, match=r"found 1 CUDA GPU for 8 ranks; add --device cpu"):
        pick_device("cuda", local_size=8)
    assert pick_device("cuda") == torch.device("cuda", 0)


def test_two_ranks_on_one_gpu_are_named() -> None:
    card = GpuFacts("node1", "GPU-0a", "NVIDIA L40S", 45 * GIB)
    elsewhere = GpuFacts("node2", "GPU-0a", "NVIDIA L40S", 45 * GIB)
    assert check_gpus([card, elsewhere]) is None
    with pytest.raises(
        InputError, match=r"gives ranks 0 and 2 the same GPU \(NVIDIA L40S on node1, GPU-0a\)"
    ):
        check_gpus([card, elsewhere, card])


@pytest.mark.parametrize(
    "uuid",
    [None, "58580000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000"],
    ids=["torch 2.4", "Radeon", "zeros"],
)
def test_gpus_that_torch_cannot_tell_apart_are_not_taken_for_one(
    uuid: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {} if uuid is None else {"uuid": uuid}
    properties = SimpleNamespace(name="Radeon RX 7900 XTX", total_memory=24 * GIB, **known)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    # two tasks of a launcher, each of which sees its own GPU as the first one
    own = gpu_facts(torch.device("cuda", 0))
    assert own.identity is None
    assert check_gpus([own, own]) is None


def test_a_gpu_is_known_by_its_uuid() -> None:
    with PretendCuda():
        assert [gpu_facts(torch.device("cuda", index)).identity for index in (0, 1)] == [
            "pretend-0",
            "pretend-1",
        ]


def test_gpus_of_unequal_memory_are_named() -> None:
    small, large = (
        GpuFacts("n", "a", "RTX 4090", 24 * GIB),
        GpuFacts("n", "b", "RTX 6000 Ada", 48 * GIB),
    )
    warning = check_gpus([large, small])
    assert warning == (
        "the GPUs differ: rank 1 has 26 GB (RTX 4090), rank 0 52 GB (RTX 6000 Ada); every rank does what fits the"
        " smallest"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has NCCL")
def test_several_ranks_on_gpus_need_nccl() -> None:
    with pytest.raises(InputError, match=r"needs NCCL for 2 ranks, which torch .* lacks; install torch from"):
        check_nccl(2, torch.device("cuda", 0))
    check_nccl(1, torch.device("cuda", 0))
    check_nccl(2, torch.device("cpu"))


def broken_driver() -> bool:
    """Return what torch.cuda.is_available does where the driver is too old."""
    warnings.warn(
        "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). "
        "(Triggered internally at CUDAFunctions.cpp:109.)",
        stacklevel=2,
    )
    return False


def root_at(folder: Path, patch: pytest.MonkeyPatch, *files: str) -> None:
    """Let drivers have created these files alone."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    for name in ("NVIDIA_FILES", "AMD_FILES"):
        patch.setattr(devices, name, [f"{folder}{pattern}" for pattern in getattr(devices, name)])


@pytest.mark.parametrize("file", ["dev/nvidia0", "usr/lib/wsl/lib/libcuda.so.1"])
def test_the_cpu_is_taken_with_a_warning_where_the_driver_is_broken(
    file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root_at(tmp_path, monkeypatch, file)
    monkeypatch.setattr(torch.cuda, "is_available", broken_driver)
    # the management library still counts the GPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert pick_device("auto") == torch.device("cpu")
    reason = r"The NVIDIA driver on your system is too old \(found version 11040\)\."
    warning = fallen_back("auto")
    assert warning is not None
    assert "auto falls back to the CPU" in warning
    with pytest.raises(InputError, match=rf"found 0 CUDA GPUs for 1 rank \({reason}\); add --device cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "torch was installed without CUDA" in str(fallen_back("auto"))
    assert fallen_back("cpu") is None


def test_the_cpu_is_taken_with_a_warning_where_torch_for_amd_finds_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root_at(tmp_path, monkeypatch, "dev/kfd")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # graphics within a processor
    assert fallen_back("auto") is None
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "torch cannot use the GPU: its driver does not answer" in str(fallen_back("auto"))


def test_expandable_segments_are_switched_off_where_the_driver_lacks_virtual_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with PretendCuda(virtual_memory=False):
        assert uses_expandable_segments(os.environ)
        device = Ranks.of_one("cuda").device
        torch.zeros(8, device=device)
        # plans follow
        assert not uses_expandable_segments(os.environ)
        select_device(torch.device("cuda", 1))
    warning = "driver of cuda:0 refuses expandable segments (CUDA driver error: operation not supported)"
    assert capsys.readouterr().err.count(warning) == 1


def test_ranks_that_see_one_gpu_each_do_not_repeat_the_allocators_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with PretendCuda(devices=1, virtual_memory=False):
        assert uses_expandable_segments(os.environ)
        select_device(torch.device("cuda", 0), speaks=False)
        assert not uses_expandable_segments(os.environ)
    assert capsys.readouterr().err == ""


def test_a_gpu_on_which_nothing_can_be_allocated_raises_what_torch_says() -> None:
    with PretendCuda() as cuda, pytest.MonkeyPatch.context() as patched:
        patched.setattr(cuda, "_wrap", unable)
        with pytest.raises(RuntimeError, match="CUDA driver error: unknown error"):
            select_device(torch.device("cuda", 0))
        assert uses_expandable_segments(os.environ)


def unable(*_: object) -> None:
    """Return an allocation on a GPU that fails whatever the allocator is."""
    raise RuntimeError("CUDA driver error: unknown error")


def test_nothing_is_said_on_machines_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root_at(tmp_path, monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fallen_back("auto") is None


def test_peak_memory_says_what_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = peak_memory(torch.device("cpu"))
    assert resident.reserved > 10**7
    assert resident.allocated is None
    figures = {"num_alloc_retries": 2, "num_ooms": 1}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: figures)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 20 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 19 * GIB)
    found = peak_memory(torch.device("cuda", 0))
    assert found == PeakMemory(20 * GIB, allocated=19 * GIB, retries=2, failures=1, driver=21 * GIB)
