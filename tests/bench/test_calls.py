"""Calls of a UNet on this machine, beside the plan's figures."""

from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from vinfinity.bench.calls import (
    covered,
    longest,
    measure_call,
    prepare_call,
    profile_call,
    published_figures,
    trace_call,
)
from vinfinity.bench.subjects import find_subject
from vinfinity.denoise.execution import MIB, Execution
from vinfinity.planning.machines import GPUS
from vinfinity.planning.trace import parameter_bytes

EXECUTION = Execution(branches=1, skips="device", chunk_bytes=MIB)
CPU = torch.device("cpu")


def test_a_call_is_timed_and_traced(model_folder: Path) -> None:
    subject = find_subject(str(model_folder), size=(32, 32))
    unet = subject.load(torch.float32, "cpu")
    found = measure_call(subject, unet, frames=20, execution=EXECUTION, rounds=1, gpu=GPUS["RTX 4090"])
    assert found.memory is None
    assert found.seconds > 0
    assert found.planned is not None
    assert found.traced > parameter_bytes(unet)
    assert found.traced_host == 0
    shape, _ = prepare_call(subject, unet, frames=20, execution=EXECUTION)
    more = Execution(branches=2, skips="host", chunk_bytes=MIB)
    assert trace_call(shape, more)[0] > found.traced
    assert trace_call(shape, more)[1] > 0


def test_a_profile_names_the_operations_of_a_call(model_folder: Path) -> None:
    subject = find_subject(str(model_folder), size=(32, 32))
    unet = subject.load(torch.float32, "cpu")
    _, call = prepare_call(subject, unet, frames=20, execution=EXECUTION)
    found = profile_call(call, CPU)
    assert found.busy > 0
    assert found.waits == 0
    assert len(found.operations) == 10
    assert any(name.startswith("aten::") for name, _ in found.operations)


def test_time_that_kernels_share_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.75)]) == 4


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_published_figures_are_found_by_the_name_of_the_driver(name: str, known: str) -> None:
    assert published_figures(name) is GPUS[known]


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 NVL",
        "NVIDIA B200",
        "Quadro RTX 6000",
        "Tesla T4",
        "NVIDIA L40",
        "NVIDIA GH200 480GB",
        "NVIDIA RTX A5000 Laptop GPU",
    ],
)
def test_gpus_without_published_figures_have_none(name: str) -> None:
    assert published_figures(name) is None


def test_a_profile_of_a_gpu_counts_the_time_of_each_kernel_once() -> None:
    host = FunctionEvent(1, "aten::mm", 1, 0, 10, stack=[], use_device="cuda")
    host.append_kernel("gemm", 0, 40)
    kernels = [
        FunctionEvent(number, name, 0, start, stop, stack=[], use_device="cuda", device_type=DeviceType.CUDA)
        for number, name, start, stop in ((2, "gemm", 20, 60), (3, "softmax", 60, 65), (4, "gemm", 70, 80))
    ]
    span = FunctionEvent(
        5,
        "layer",
        0,
        20,
        80,
        stack=[],
        use_device="cuda",
        device_type=DeviceType.CUDA,
        is_user_annotation=True,
    )
    events = EventList([host, *kernels, span], use_device="cuda")
    events._build_tree()
    found = longest(events.key_averages(), on_gpu=True)
    assert [name for name, _ in found] == ["gemm", "softmax"]
    assert [seconds for _, seconds in found] == pytest.approx([50e-6, 5e-6])
