"""torch, and what it can do on this machine. Functions import torch when they are called, since it may be broken."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vinfinity.errors import InputError
from vinfinity.machine.probe import Failed, attempt, reason_of
from vinfinity.system.pytorch import allocator_settings, prefer_expandable_segments

if TYPE_CHECKING:
    import torch

# any number of frames: how many ranks a video can have does not matter here
MANY_FRAMES = 2**20
# torch's error where it finds a driver, but no GPU
NO_GPUS = "No CUDA GPUs are available"
# temporal attention: 32 queries, 64 keys
QUERIES, KEYS, HEAD_WIDTH = 32, 64, 64


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees. fault: why it cannot compute; "" if it can. memory, free: in bytes."""

    index: int
    name: str
    uuid: str
    capability: str
    memory: int
    free: int | None
    fault: str


@dataclass(frozen=True)
class Attention:
    """The backends of scaled_dot_product_attention that torch picks for heads of 64 channels.

    temporal: with a bias, as in temporal attention. spatial: without one.
    """

    temporal: str
    spatial: str


@dataclass(frozen=True)
class Use:
    """What a run would compute on.

    dtype: as the setting names it. threads: the number per rank. refused: why the run would be refused; "" if it would
    not. allocator: the settings of torch's allocator for GPUs; "" for its default.
    """

    device: str
    dtype: str
    attention: Attention | Failed | None
    threads: int
    refused: str
    allocator: str = ""


@dataclass(frozen=True)
class Versions:
    """torch and the libraries that come with it; None for what this build does not have."""

    torch: str
    cuda: str | None
    rocm: str | None
    cudnn: str | None
    nccl: str | None
    triton: str | None


@dataclass(frozen=True)
class Engine:
    """torch and what it finds on this machine.

    architectures: the GPU architectures that its kernels were built for. gpus: the GPUs that it sees. fault: why it
    sees none although it was built for them; "" if it does. apart: pairs of GPUs without access to each other's memory.
    """

    versions: Versions
    backends: tuple[str, ...] | Failed
    architectures: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    fault: str
    apart: tuple[tuple[int, int], ...] | Failed
    use: Use | Failed


def find_versions() -> Versions:
    """Return the versions of torch and of the libraries in it."""
    import torch

    return Versions(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        rocm=torch.version.hip,
        cudnn=_text(_cudnn),
        nccl=_text(_nccl),
        triton=_text(lambda: importlib.metadata.version("triton")),
    )


def find_engine(*, device: str = "auto", ranks: int | None = None) -> Engine:
    """torch, the GPUs that it sees, and what a run of that many ranks would use. Computes something on each GPU."""
    gpus, fault = _find_gpus()
    return Engine(
        versions=find_versions(),
        backends=attempt(_backends),
        architectures=_architectures(),
        gpus=gpus,
        fault=fault,
        apart=attempt(_apart, len(gpus)),
        use=attempt(_find_use, device, ranks),
    )


def attention_backends(device: torch.device, dtype: torch.dtype) -> Attention:
    """Return the backends that torch picks for attention on a device."""
    import torch
    from torch.nn.attention import SDPBackend

    q = torch.zeros(2, 8, QUERIES, HEAD_WIDTH, device=device, dtype=dtype)
    k = torch.zeros(2, 8, KEYS, HEAD_WIDTH, device=device, dtype=dtype)
    bias = torch.zeros(QUERIES, KEYS, device=device, dtype=dtype)

    def backend(choice: int) -> str:
        return SDPBackend(choice).name.lower().removesuffix("_attention")

    return Attention(
        temporal=backend(torch._fused_sdp_choice(q, k, k, bias)),
        spatial=backend(torch._fused_sdp_choice(k, k, k)),
    )


def _find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that torch sees, and why it sees none although it was built for them."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return (), ""
    prefer_expandable_segments(os.environ)
    try:
        with warnings.catch_warnings():
            # what they say comes with the error as well
            warnings.simplefilter("ignore")
            torch.cuda.init()
    except Exception as error:
        # without a fault, CUDA_VISIBLE_DEVICES hides all of them
        return (), "" if NO_GPUS in str(error) else reason_of(error)
    return tuple(_find_gpu(index) for index in range(torch.cuda.device_count())), ""


def _find_gpu(index: int) -> Gpu:
    import torch

    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    computed = attempt(_compute, device)
    free = attempt(torch.cuda.mem_get_info, device)
    uuid = str(getattr(properties, "uuid", ""))
    return Gpu(
        index=index,
        name=properties.name,
        uuid=f"GPU-{uuid}" if uuid and not uuid.startswith(("GPU-", "MIG-")) else uuid,
        capability=f"{properties.major}.{properties.minor}",
        memory=properties.total_memory,
        free=None if isinstance(free, Failed) else free[0],
        fault=computed.reason if isinstance(computed, Failed) else computed,
    )


def _compute(device: torch.device) -> str:
    """Compute a product and a convolution on a GPU. Returns what is wrong with the results; "" if nothing is."""
    import torch
    import torch.nn.functional as F

    from vinfinity.parallel.devices import settle_allocator

    settle_allocator(device)
    ones = torch.ones(16, 16, device=device, dtype=torch.float16)
    product = (ones @ ones).float().sum().item()
    picture = torch.ones(1, 8, 8, 8, device=device, dtype=torch.float16)
    weight = torch.ones(8, 8, 1, 1, device=device, dtype=torch.float16)
    convolved = F.conv2d(picture, weight).float().sum().item()
    right = (product, convolved) == (16.0**3, 8.0 * 8**3)
    return "" if right else f"computes wrong numbers: {product:g} and {convolved:g}, not 4096 twice"


def _find_use(device: str, ranks: int | None) -> Use:
    import torch

    from vinfinity.parallel.devices import pick_device, rank_device
    from vinfinity.parallel.launch import check_ranks
    from vinfinity.parallel.place import find_place
    from vinfinity.weights.dtypes import DTYPES, pick_dtype

    try:
        place = find_place(os.environ)
        check_ranks(gpus=ranks, device=device, frames=MANY_FRAMES, place=place)
        local = ranks or 1 if place is None else place.local_size
        picked = pick_device(device, local_size=local) if place is None else rank_device(place, device)
    except InputError as error:
        return Use(device="", dtype="", attention=None, threads=0, refused=error.message)
    dtype = pick_dtype("auto", picked)
    threads = torch.get_num_threads()
    if local > 1 and picked.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // local)
    return Use(
        device=picked.type,
        dtype=next(name for name, known in DTYPES.items() if known == dtype),
        attention=attempt(attention_backends, picked, dtype),
        threads=threads,
        refused="",
        allocator=allocator_settings(os.environ) if picked.type == "cuda" else "",
    )


def _backends() -> tuple[str, ...]:
    from vinfinity.parallel.backends import backends

    return backends()


def _architectures() -> tuple[str, ...]:
    import torch

    found = attempt(torch.cuda.get_arch_list)
    return () if isinstance(found, Failed) else tuple(found)


def _apart(gpus: int) -> tuple[tuple[int, int], ...]:
    import torch

    pairs = [(first, second) for first in range(gpus) for second in range(first + 1, gpus)]
    return tuple(pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair))


def _cudnn() -> str | None:
    import torch

    number = torch.backends.cudnn.version()
    if number is None:
        return None
    # 8902 is 8.9.2, 91002 is 9.10.2
    major, rest = divmod(number, 10000) if number >= 90000 else divmod(number, 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _nccl() -> str | None:
    import torch

    return ".".join(str(part) for part in torch.cuda.nccl.version())


def _text(find: Callable[[], str | None]) -> str | None:
    """Return a version, None if there is none."""
    found = attempt(find)
    return None if isinstance(found, Failed) else found
