"""The device that a rank computes on, and whether the GPUs of all ranks suit each other."""

import contextlib
import glob
import os
import resource
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vinfinity.errors import InputError, one_line
from vinfinity.parallel.place import Place
from vinfinity.system.out_of_memory import GPU_REMEDY
from vinfinity.system.progress import warn
from vinfinity.system.pytorch import (
    allocator_settings,
    allocator_variable,
    for_rocm,
    prefer_expandable_segments,
    without_expandable_segments,
)

# the files that NVIDIA's driver creates for each GPU, and the library that it adds to WSL
NVIDIA_FILES = ("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libcuda.so.1")
# the file that AMD's driver creates, also for graphics of processors: a sign of a GPU if torch was built for AMD
AMD_FILES = ("/dev/kfd",)
# variables that choose the GPUs that a process sees; the last two are ROCm's
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# GPUs whose memory differs by less than this fraction count as equal
UNEQUAL = 0.05


def pick_device(wanted: str, *, local_size: int = 1, place: Place | None = None) -> torch.device:
    """Return the device of a rank for "auto", "cuda" or "cpu": the GPU with the rank's number on the node.

    local_size: ranks on the node. place: the rank's place if a launcher started it, in place of `local_size`. The
    launcher may show each rank a single GPU, which then is its own; `check_gpus` finds ranks that share one.
    With "auto", a single rank falls back to the CPU. Raises InputError if the node has fewer GPUs than ranks.
    """
    local_rank = 0
    if place is not None:
        local_rank, local_size = place.local_rank, place.local_size
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_initialized():
        # for processes in which vinfinity is a library; the command line has done it already
        prefer_expandable_segments(os.environ)
    found, reason = usable_gpus()
    if wanted == "auto" and local_size == 1 and found == 0:
        return torch.device("cpu")
    if local_size <= found:
        return torch.device("cuda", local_rank)
    chosen = {name: os.environ[name] for name in VISIBLE if name in os.environ}
    if place is not None and place.may_see_one_gpu and found == 1 and any(chosen.values()):
        return torch.device("cuda", 0)
    ranks = f"{local_size} rank{'s' * (local_size > 1)}"
    because = f" ({', '.join(f'{name}={value!r}' for name, value in chosen.items())})" if chosen else ""
    problem = f"found {found} CUDA GPU{'s' * (found != 1)}{because} for {ranks}"
    if found == 0 and reason:
        problem += f" ({reason})"
    remedy = f"add --device cpu to run {ranks} on the CPU"
    if place is not None and place.gpu_remedy and found:
        remedy = place.gpu_remedy
    raise InputError("device", wanted, remedy, problem=problem)


def rank_device(place: Place, wanted: str) -> torch.device:
    """Return the device of the rank at `place`; see `pick_device`."""
    return pick_device(wanted, place=place)


def usable_gpus() -> tuple[int, str]:
    """Return how many GPUs torch can use; if none, why it cannot use those that the machine seems to have, or ""."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available() and (found := _enumerated()):
            return found, ""
    signs = (*NVIDIA_FILES, *(AMD_FILES if for_rocm() else ()))
    if not any(glob.glob(sign) for sign in signs):
        return 0, ""
    if torch.version.cuda is None and not for_rocm():
        return 0, "torch was installed without CUDA"
    said = one_line(caught[-1].message) if caught else "its driver does not answer"
    return 0, said.partition(" (Triggered internally")[0].removeprefix("CUDA initialization: ")


def _enumerated() -> int:
    """Count the GPUs that CUDA lists for this process.

    Until CUDA is initialised, torch's device_count asks the driver's management library. That also counts GPUs that
    torch cannot use, such as all GPUs in MIG mode, of which CUDA lists a single slice.
    """
    # builds for CPUs have no such function
    count = getattr(torch._C, "_cuda_getDeviceCount", torch.cuda.device_count)
    return int(count())


def fallen_back(wanted: str) -> str | None:
    """Return a warning if a run falls back to the CPU although the machine has a GPU."""
    reason = usable_gpus()[1] if wanted == "auto" else ""
    if not reason:
        return None
    return f"device: auto falls back to the CPU because torch cannot use the GPU: {reason}; see `vinfinity doctor`"


def select_device(device: torch.device, *, speaks: bool = True) -> None:
    """Make a device the current one of this process's main thread, and check that memory can be allocated on it.

    speaks: whether this process gives the warnings that the ranks of its node have in common.
    """
    with named_if_taken(device):
        enter_device(device)
        settle_allocator(device, speaks=speaks)


@contextlib.contextmanager
def named_if_taken(device: torch.device) -> Iterator[None]:
    """Raise InputError if another process has the device to itself, as compute mode Exclusive_Process allows."""
    try:
        yield
    except RuntimeError as error:
        if "busy or unavailable" not in str(error):
            raise
        problem = "is used exclusively by another process, or is not available"
        raise InputError("device", device, GPU_REMEDY, problem=problem) from error


def enter_device(device: torch.device) -> None:
    """Make a device the current one of this thread.

    Every thread starts on the first GPU. A thread that queries an event of another GPU would create a context on the
    first one, of half a gigabyte.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def settle_allocator(device: torch.device, *, speaks: bool = True) -> None:
    """Allocate a byte on a device; if that fails only because of expandable segments, disable them with a warning.

    The drivers of some virtual GPUs and of Jetson lack the virtual memory that expandable segments need. `os.environ`
    also gets the allocator's new settings, for plans. speaks: see `select_device`. Raises RuntimeError if nothing can
    be allocated.
    """
    try:
        torch.empty(1, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        name, given = allocator_variable(os.environ), allocator_settings(os.environ)
        settings = without_expandable_segments(given)
        if name is None or settings == given:
            raise
        _configure_allocator(settings)
        torch.empty(1, dtype=torch.uint8, device=device)
        os.environ[name] = settings
        if speaks:
            warn(
                f"device: the driver of {device} refuses expandable segments ({one_line(error)}); without them, a run"
                " needs more memory"
            )


def _configure_allocator(settings: str) -> None:
    """Configure the allocator of this process, overriding its environment variable."""
    # torch 2.4 has only the older name, for which newer versions warn
    configure = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (configure or torch.cuda.memory._set_allocator_settings)(settings)


def check_nccl(size: int, device: torch.device) -> None:
    """Raise InputError if ranks on GPUs cannot reach each other because torch lacks NCCL."""
    if size > 1 and device.type == "cuda" and not dist.is_nccl_available():
        remedy = "install torch from its official packages, or use one GPU"
        problem = f"needs NCCL for {size} ranks, which torch {torch.__version__} lacks"
        raise InputError("device", "cuda", remedy, problem=problem)


@dataclass(frozen=True)
class GpuFacts:
    """One rank's GPU.

    host: name of the node. identity: distinguishes the GPU from others on the node; None if it is unknown. name: the
    GPU's product name.
    memory: in bytes.
    """

    host: str
    identity: str | None
    name: str
    memory: int


def gpu_facts(device: torch.device) -> GpuFacts:
    """Return the facts of a GPU in use."""
    properties = torch.cuda.get_device_properties(device)
    # torch 2.4 has no uuid
    uuid = str(getattr(properties, "uuid", ""))
    # all AMD GPUs without a UUID report the same one, which spells XX
    known = uuid.strip("0-") not in ("", "5858")
    return GpuFacts(socket.gethostname(), uuid if known else None, properties.name, properties.total_memory)


def check_gpus(gpus: Sequence[GpuFacts]) -> str | None:
    """Return a warning if the ranks' GPUs have unequal memory, else None. Raise InputError if two ranks share one.

    If GPUs have no identity, NCCL finds those that ranks share. Their numbers do not tell, since each rank may see its
    own GPU as the first one.
    """
    owners: dict[tuple[str, str], int] = {}
    for rank, gpu in enumerate(gpus):
        if gpu.identity is not None and (owner := owners.setdefault((gpu.host, gpu.identity), rank)) != rank:
            problem = (
                f"gives ranks {owner} and {rank} the same GPU ({gpu.name} on {gpu.host}, {gpu.identity})"
            )
            remedy = "start one rank per GPU; under srun, use --gpus-per-node with --gpu-bind=none"
            raise InputError("device", "cuda", remedy, problem=problem)
    smallest = min(range(len(gpus)), key=lambda rank: gpus[rank].memory)
    largest = max(range(len(gpus)), key=lambda rank: gpus[rank].memory)
    least, most = gpus[smallest], gpus[largest]
    if least.memory >= (1 - UNEQUAL) * most.memory:
        return None
    return (
        f"the GPUs differ: rank {smallest} has {least.memory / 1e9:.0f} GB ({least.name}), rank {largest}"
        f" {most.memory / 1e9:.0f} GB ({most.name}); every rank does what fits the smallest"
    )


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a rank has used so far, in bytes.

    reserved: memory reserved by the allocator on the rank's GPU, which is what runs out; on a CPU, memory of the
    process. allocated: the part of it in tensors. retries: how often the allocator was out of memory until it released
    its cache. failures: how often it was still out of memory after that. driver: memory in use on the GPU at the time
    of the call, by all processes and libraries. The last four are None on a CPU.
    """

    reserved: int
    allocated: int | None = None
    retries: int | None = None
    failures: int | None = None
    driver: int | None = None


def forget_peak_memory(device: torch.device) -> None:
    """Reset the peak memory of a GPU. The peak of a process on the CPU cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> PeakMemory:
    """Return the peak memory of this process on its device."""
    if device.type != "cuda":
        unit = 1 if sys.platform == "darwin" else 1024
        return PeakMemory(reserved=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    counts = torch.cuda.memory_stats(device)
    free, total = torch.cuda.mem_get_info(device)
    return PeakMemory(
        reserved=torch.cuda.max_memory_reserved(device),
        allocated=torch.cuda.max_memory_allocated(device),
        retries=counts.get("num_alloc_retries", 0),
        failures=counts.get("num_ooms", 0),
        driver=total - free,
    )
