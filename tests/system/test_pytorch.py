"""What is settled before torch is imported: its version, and its allocator."""

import re
from pathlib import Path

import pytest

from vinfinity.errors import InputError
from vinfinity.system.pytorch import (
    OLDEST,
    VARIABLES,
    prefer_expandable_segments,
    require_torch,
    uses_expandable_segments,
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
