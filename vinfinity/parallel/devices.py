"""The device that a rank computes on, and whether the GPUs of all ranks go together."""

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

# what NVIDIA's driver creates for each GPU; in WSL, what it brings along
NVIDIA_FILES = ("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libcuda.so.1")
# what AMD's driver creates, also for the graphics of processors: a sign of a GPU where torch was built for AMD's
AMD_FILES = ("/dev/kfd",)
# variables that choose the GPUs that a process sees; the last two are ROCm's
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# GPUs whose memory differs by less than this share count as equal
UNEQUAL = 0.05


def pick_device(
    wanted: str, *, local_rank: int = 0, local_size: int = 1, launcher: str | None = None
) -> torch.device:
    """The device of a rank for "auto", "cuda" or "cpu": the GPU with the rank's number on the node.

    launcher: what started the ranks. Of the tasks of srun and torchrun each may see a single GPU, which then is its
    own; `check_gpus` finds those that share one.
    With "auto", a single rank falls back to the CPU. Raises InputError if the node has fewer GPUs than ranks.
    """
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
    if launcher in ("srun", "torchrun") and found == 1 and any(chosen.values()):
        return torch.device("cuda", 0)
    ranks = f"{local_size} rank{'s' * (local_size > 1)}"
    because = f" ({', '.join(f'{name}={value!r}' for name, value in chosen.items())})" if chosen else ""
    problem = f"finds {found} CUDA GPU{'s' * (found != 1)}{because} for {local_size}"
    if found == 0 and reason:
        problem += f" ({reason})"
    remedy = f"add --device cpu to run {ranks} on the CPU"
    if launcher == "srun" and found:
        remedy = (
            f"start one task per GPU, and let each see all GPUs: --gpus-per-node {local_size} --gpu-bind=none"
        )
    raise InputError("device", wanted, remedy, problem=problem)


def rank_device(place: Place, wanted: str) -> torch.device:
    """The device of the rank at `place`. Raises InputError."""
    return pick_device(
        wanted, local_rank=place.local_rank, local_size=place.local_size, launcher=place.launcher
    )


def usable_gpus() -> tuple[int, str]:
    """How many GPUs torch can use; if none, why it cannot use those that the machine seems to have, or ""."""
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
    """The GPUs that CUDA lists for this process.

    Until CUDA is initialised, device_count asks the driver's management library, which also counts GPUs that torch
    cannot use, such as those in MIG mode, of which CUDA lists one slice.
    """
    # builds for CPUs have no such function
    count = getattr(torch._C, "_cuda_getDeviceCount", torch.cuda.device_count)
    return int(count())


def fallen_back(wanted: str) -> str | None:
    """A warning if the CPU is taken although the machine has a GPU."""
    reason = usable_gpus()[1] if wanted == "auto" else ""
    if not reason:
        return None
    return f"device: auto takes the CPU, because torch cannot use this machine's GPU: {reason}; see `vinfinity doctor`"


def select_device(device: torch.device, *, speaks: bool = True) -> None:
    """Make a device the current one of this process's main thread, and see that memory can be allocated on it.

    speaks: whether this process warns of what it has in common with the other ranks of its node.
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
        problem = "is taken by another process, or is not available"
        raise InputError("device", device, GPU_REMEDY, problem=problem) from error


def enter_device(device: torch.device) -> None:
    """Make a device the current one of this thread.

    Every thread begins on the first GPU. One that asks for an event of another GPU would create a context on the first
    one, of half a gigabyte.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def settle_allocator(device: torch.device, *, speaks: bool = True) -> None:
    """Allocate a byte on a device, and switch expandable segments off, with a warning, if that fails with them alone.

    Some drivers lack the virtual memory that they need: those of some virtual GPUs, and of Jetson. From then on,
    `os.environ` has what the allocator does, which plans follow. speaks: see `select_device`. Raises RuntimeError if
    nothing can be allocated.
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
    """Change how the allocator of this process is configured, in place of its environment variable."""
    # torch 2.4 knows the older name only, which newer versions warn of
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
    """One rank's GPU. host: of its node. identity: what tells it from the other GPUs there, None if it is not known.
    memory: in bytes.
    """

    host: str
    identity: str | None
    name: str
    memory: int


def gpu_facts(device: torch.device) -> GpuFacts:
    """The facts of a GPU in use."""
    properties = torch.cuda.get_device_properties(device)
    # torch 2.4 knows none
    uuid = str(getattr(properties, "uuid", ""))
    # all GPUs of AMD that have none share one, of the letters XX
    known = uuid.strip("0-") not in ("", "5858")
    return GpuFacts(socket.gethostname(), uuid if known else None, properties.name, properties.total_memory)


def check_gpus(gpus: Sequence[GpuFacts]) -> str | None:
    """A warning if the ranks' GPUs have unequal memory, else None. Raises InputError if two ranks share a GPU.

    Where GPUs have no identity, NCCL finds those that ranks share: their numbers do not tell, since each rank may see
    its own as the first one.
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
    """The most memory that a rank has held so far, in bytes.

    reserved: by the allocator on its GPU, which is what runs out; on the CPU, by the process. allocated: the part of it
    in tensors. retries: how often the allocator was out of memory until it gave back its cache. failures: how often it
    was out of memory even so. driver: used on the GPU at the end, by all processes and libraries. The last four are
    None on a CPU.
    """

    reserved: int
    allocated: int | None = None
    retries: int | None = None
    failures: int | None = None
    driver: int | None = None


def forget_peak_memory(device: torch.device) -> None:
    """Count the peak memory of a GPU from now on; that of a process on the CPU cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> PeakMemory:
    """The peak memory of this process on its device."""
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
