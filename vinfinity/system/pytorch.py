"""Decisions made before torch is imported: its version, and how it allocates memory on GPUs. Imports no torch."""

import importlib.metadata
import re
import sys
from collections.abc import Mapping, MutableMapping

from vinfinity.errors import InputError
from vinfinity.system.wsl import in_wsl

OLDEST = (2, 4)

# All versions of torch read the first. The second is its newer name, which torch 2.9 and 2.10 ignore in part
# (pytorch#183387); if both are set, the first counts.
VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
# read after these, and only by builds for AMD's GPUs
ROCM_VARIABLE = "PYTORCH_HIP_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"
_SWITCH = re.compile(r"\bexpandable_segments\s*:\s*True\b")


def require_torch(version: str | None = None) -> None:
    """Raise InputError if torch is older than vinfinity supports. version: None for the installed one."""
    version = version or _installed()
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is not None and (int(match[1]), int(match[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError("torch", version, f"install torch {oldest} or newer", problem="is too old")


def _installed() -> str:
    """Return the version of torch; "" if it is missing, which its import reports, or was built from source."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def for_rocm() -> bool:
    """Return whether torch was built for AMD's GPUs."""
    loaded = sys.modules.get("torch.version")
    return "rocm" in _installed() if loaded is None else loaded.hip is not None


def prefer_expandable_segments(environment: MutableMapping[str, str]) -> None:
    """Enable expandable segments, unless the user has configured the allocator. Call it before torch uses a GPU.

    Without them, blocks of many sizes leave gaps that the allocator cannot use again: a network call then takes up to
    1.35 times the memory of its tensors (docs/decisions/0015-the-gpu-path.md). In WSL they stay off: drivers there fail
    at the first allocation or while weights load, depending on the GPU (pytorch#192330). They also stay off on AMD's
    GPUs: older versions of torch lack them there, and newer ones may hang (pytorch#192259).
    """
    if not in_wsl() and not for_rocm() and allocator_variable(environment) is None:
        environment[VARIABLES[0]] = EXPANDABLE


def allocator_variable(environment: Mapping[str, str]) -> str | None:
    """Return the name of the variable that configures the allocator; None if no variable does."""
    names = (*VARIABLES, ROCM_VARIABLE) if for_rocm() else VARIABLES
    return next((name for name in names if environment.get(name)), None)


def allocator_settings(environment: Mapping[str, str]) -> str:
    """Return the settings of the allocator; "" for torch's default."""
    return environment.get(allocator_variable(environment) or "", "")


def uses_expandable_segments(environment: Mapping[str, str]) -> bool:
    """Return whether the allocator is configured to use expandable segments.

    Always False on AMD's GPUs, where the allocator may ignore the setting.
    """
    return not for_rocm() and _SWITCH.search(allocator_settings(environment)) is not None


def without_expandable_segments(settings: str) -> str:
    """Return settings of the allocator with expandable segments disabled and all else unchanged."""
    return _SWITCH.sub("expandable_segments:False", settings)
