"""What a run records about the machines of its ranks, so that its figures can be compared with others."""

import os
import platform
from typing import Any

import torch

from vinfinity.machine.engine import attention_backends, find_versions
from vinfinity.machine.host import find_processor
from vinfinity.machine.nvidia import driver_version
from vinfinity.machine.probe import Failed, attempt, known, plain
from vinfinity.parallel.devices import gpu_facts
from vinfinity.system.pytorch import allocator_settings


def describe_rank(device: torch.device) -> dict[str, Any]:
    """Return the machine of this rank: its host, its processor, and its GPU with the driver if it has one."""
    processor = known(attempt(find_processor))
    rank: dict[str, Any] = {
        "host": platform.node(),
        "processor": None if processor is None else processor.name,
        "device": str(device),
    }
    if device.type != "cuda":
        return rank
    gpu = attempt(gpu_facts, device)
    if isinstance(gpu, Failed):
        return {**rank, "gpu": plain(gpu)}
    driver = known(attempt(driver_version))
    return {**rank, "gpu": gpu.name, "uuid": gpu.identity, "memory": gpu.memory, "driver": driver}


def describe_software(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the versions and settings that speed, memory and rounding depend on. dtype: the denoiser's."""
    return {
        "python": platform.python_version(),
        **plain(find_versions()),
        "attention": plain(attempt(attention_backends, device, dtype)),
        "allocator": allocator_settings(os.environ),
    }
