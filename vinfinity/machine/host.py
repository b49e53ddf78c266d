"""The computer without its GPUs: system, processor, memory, folders, network. Loads no torch."""

import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vinfinity.machine.probe import Failed, attempt
from vinfinity.system.memory import free_on_host, host_memory
from vinfinity.system.processor import CPUINFO, instruction_sets, processor_entries
from vinfinity.system.wsl import in_wsl

# instructions that change the speed of networks on CPUs, and their names in /proc/cpuinfo, the widest first
VECTORS = {"AMX": "amx_bf16", "AVX-512": "avx512f", "AVX2": "avx2", "SVE": "sve", "NEON": "asimd"}
# prefixes of variables that change how a run behaves
PREFIXES = (
    "CUDA_",
    "CUDNN_",
    "GLOO_",
    "HF_",
    "HIP_",
    "KMP_",
    "LOCAL_",
    "MASTER_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "PYTORCH_",
    "ROCR_",
    "TORCH",
    "VINFINITY_",
)
NAMES = ("RANK", "WORLD_SIZE", "GROUP_RANK", "LD_PRELOAD", "TMPDIR", "XDG_DATA_HOME")
# of SLURM's hundred variables
SLURM = (
    "SLURM_JOB_ID",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NUM_TASKS",
)
SECRETS = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


@dataclass(frozen=True)
class System:
    """The operating system. host: the name of this computer. container: what it runs in; "" if unknown."""

    host: str
    system: str
    kernel: str
    python: str
    container: str


@dataclass(frozen=True)
class Processor:
    """The processor.

    cores: those of the machine. usable: those for this process. vectors: its widest instructions for networks; "" if
    unknown.
    """

    name: str
    cores: int
    usable: int
    vectors: str


@dataclass(frozen=True)
class HostMemory:
    """Host memory in bytes. free: what this process can allocate within the limits of control groups."""

    total: int
    free: int


@dataclass(frozen=True)
class Space:
    """The file system of a folder, in bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class Folder:
    """A folder that runs write to. use: its purpose. path: the part that exists. space: that of its file system."""

    use: str
    path: str
    writable: bool
    space: Space | Failed


@dataclass(frozen=True)
class Network:
    """The network.

    address: what the host's name resolves to; None if it cannot be resolved. loopback: why a connection of this
    computer to itself fails; "" if it does not.
    """

    host: str
    address: str | None
    interfaces: tuple[str, ...]
    loopback: str


def find_system() -> System:
    """Return the operating system and the Python that runs this."""
    release = attempt(platform.freedesktop_os_release)
    name = platform.system() if isinstance(release, Failed) else release.get("PRETTY_NAME", "Linux")
    return System(
        host=platform.node(),
        system=name,
        kernel=platform.release(),
        python=platform.python_version(),
        container=_container(),
    )


def _container() -> str:
    if in_wsl():
        return "WSL"
    for variable, name in (("APPTAINER_CONTAINER", "Apptainer"), ("SINGULARITY_CONTAINER", "Singularity")):
        if variable in os.environ:
            return name
    for file, name in (("/.dockerenv", "Docker"), ("/run/.containerenv", "Podman")):
        if os.path.exists(file):
            return name
    return "Kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else ""


def find_processor(file: Path = CPUINFO) -> Processor:
    """Return the processor and its cores. file: Linux's description of it."""
    found = instruction_sets(file)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Processor(
        name=processor_entries(file).get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count() or usable,
        usable=usable,
        vectors=next((name for name, instructions in VECTORS.items() if instructions in found), ""),
    )


def find_memory() -> HostMemory:
    """Return the memory of the host."""
    return HostMemory(total=host_memory(), free=free_on_host())


def find_space(path: str | Path) -> Space:
    """Return the file system of a folder."""
    usage = shutil.disk_usage(path)
    return Space(total=usage.total, free=usage.free)


def find_folder(use: str, path: Path) -> Folder:
    """Return a folder that runs write to, or the folder in which they would create it."""
    path = path.expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    writable = path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    return Folder(use=use, path=str(path), writable=writable, space=attempt(find_space, path))


def find_folders(models: Path) -> tuple[Folder, ...]:
    """Return the folders that runs write to. models: the folder of fetched models."""
    candidates = {"working folder": Path(), "home": Path("~"), "models": models}
    folders = [find_folder(use, path) for use, path in candidates.items()]
    temporary = attempt(tempfile.gettempdir)
    if isinstance(temporary, Failed):
        wanted = os.environ.get("TMPDIR", "/tmp")
        return (*folders, Folder(use="temporary files", path=wanted, writable=False, space=temporary))
    return (*folders, find_folder("temporary files", Path(temporary)))


def find_network() -> Network:
    """Find how this computer can be reached by others, and by itself."""
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = None
    interfaces = tuple(name for _, name in socket.if_nameindex())
    return Network(host=host, address=address, interfaces=interfaces, loopback=_loopback())


def _loopback() -> str:
    try:
        with socket.create_server(("localhost", 0)) as server:
            server.settimeout(5.0)
            with socket.create_connection(server.getsockname()[:2], timeout=5.0):
                server.accept()[0].close()
    except OSError as error:
        return str(error)
    return ""


def find_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that change how runs behave; not those that hold secrets."""

    def relevant(name: str) -> bool:
        listed = name in NAMES or name in SLURM or name.startswith(PREFIXES)
        return listed and SECRETS.search(name) is None

    return {name: environment[name] for name in sorted(environment) if relevant(name)}


def shortened(names: Iterable[str], *, most: int) -> str:
    """Return names as text: the first `most`, and how many more there are."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
