"""What is settled before torch is imported: its version, and its allocator."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracles import fault_work

from vinfinity.errors import InputError
from vinfinity.parallel.launch import launch
from vinfinity.system.pytorch import (
    OLDEST,
    ROCM_VARIABLE,
    VARIABLES,
    allocator_settings,
    prefer_expandable_segments,
    require_torch,
    uses_expandable_segments,
    without_expandable_segments,
)


def test_expandable_segments_are_on_unless_the_user_has_configured_the_allocator() -> None:
    environment: dict[str, str] = {}
    prefer_expandable_segments(environment)
    assert environment == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert uses_expandable_segments(environment)
    for name in VARIABLES:
        own = {name: "max_split_size_mb:128"}
        prefer_expandable_segments(own)
        assert own == {name: "max_split_size_mb:128"}
        assert not uses_expandable_segments(own)


@pytest.mark.parametrize(
    ("settings", "on"),
    [
        ({}, False),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64, expandable_segments: True"}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, False),
        # torch reads the older name first
        (
            {
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
                "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            },
            False,
        ),
    ],
)
def test_the_allocators_settings_are_read_as_torch_reads_them(settings: dict[str, str], on: bool) -> None:
    assert uses_expandable_segments(settings) == on


def test_expandable_segments_stay_off_in_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.6.87.2-microsoft-standard-WSL2")
    environment: dict[str, str] = {}
    prefer_expandable_segments(environment)
    assert environment == {}
    assert not uses_expandable_segments(environment)


def test_expandable_segments_stay_off_on_amds_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(torch.version, "hip", "7.2")
    prefer_expandable_segments(environment)
    assert environment == {}
    # before torch is imported, its version tells
    monkeypatch.delitem(sys.modules, "torch.version")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+rocm7.2")
    prefer_expandable_segments(environment)
    assert environment == {}


def test_the_allocators_variable_of_rocm_counts_on_amds_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {ROCM_VARIABLE: "expandable_segments:True"}
    assert allocator_settings(own) == ""
    monkeypatch.setattr(torch.version, "hip", "7.2")
    assert allocator_settings(own) == "expandable_segments:True"
    # which torch may ignore there
    assert not uses_expandable_segments(own)


def test_expandable_segments_are_switched_off_among_other_settings() -> None:
    settings = "max_split_size_mb:64, expandable_segments : True,garbage_collection_threshold:0.8"
    without = without_expandable_segments(settings)
    assert without == "max_split_size_mb:64, expandable_segments:False,garbage_collection_threshold:0.8"


def test_the_command_line_switches_expandable_segments_on_before_torch_is_imported() -> None:
    program = "import sys; from vinfinity.cli.output import import_engine; assert 'torch' not in sys.modules"
    program += "; import_engine(); import os; print(os.environ['PYTORCH_CUDA_ALLOC_CONF'])"
    for own, expected in (
        (None, "expandable_segments:True"),
        ("max_split_size_mb:99", "max_split_size_mb:99"),
    ):
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        environment |= {} if own is None else {VARIABLES[0]: own}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_ranks_have_the_allocator_of_their_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[0], "max_split_size_mb:77")
    assert (
        launch(fault_work.allocator_settings, None, gpus=2, device="cpu", timeout=120.0)
        == ["max_split_size_mb:77"] * 2
    )


def test_an_old_torch_is_refused() -> None:
    with pytest.raises(InputError, match=r"torch: 2\.3\.1\+cu121 is too old; install torch 2\.4 or newer"):
        require_torch("2.3.1+cu121")
    require_torch("2.4.0")
    require_torch("2.13.0+cpu")
    require_torch()


def test_the_oldest_torch_is_that_of_the_package() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    [oldest] = re.findall(r'"torch>=([\d.]+)"', project)
    assert oldest == ".".join(map(str, OLDEST))
