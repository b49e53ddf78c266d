"""Everything that the doctor checks. Does not import torch itself."""

import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinfinity import __version__
from vinfinity.errors import InputError
from vinfinity.machine.engine import Engine, find_engine
from vinfinity.machine.host import (
    Folder,
    HostMemory,
    Network,
    Processor,
    Space,
    System,
    find_folders,
    find_memory,
    find_network,
    find_processor,
    find_space,
    find_system,
    find_variables,
)
from vinfinity.machine.nvidia import Nvidia, find_nvidia
from vinfinity.machine.probe import Failed, ProbeError, attempt, in_child
from vinfinity.machine.video import Video, find_video
from vinfinity.parallel.place import Place, find_place
from vinfinity.weights.card import EMBEDDED, read_card
from vinfinity.weights.registry import local_models, models_folder

PACKAGE = Path(__file__).parent.parent
SHARED_MEMORY = Path("/dev/shm")
# seconds that file systems and name servers may take
SLOW = 60.0


@dataclass(frozen=True)
class Model:
    """A model that runs find by name. fault: why it cannot be used; "" if it can."""

    name: str
    folder: str
    fault: str


@dataclass(frozen=True)
class Facts:
    """What was found.

    gpus, device: the options of the run. nvidia: None without NVIDIA hardware. shared_memory: None if the system has
    none. place: the place of this process among the ranks of a launcher; None without a launcher.
    """

    version: str
    package: str
    gpus: int | None
    device: str
    system: System | Failed
    processor: Processor | Failed
    memory: HostMemory | Failed
    shared_memory: Space | Failed | None
    folders: tuple[Folder, ...] | Failed
    network: Network | Failed
    nvidia: Nvidia | Failed | None
    engine: Engine | Failed
    video: Video | Failed
    models: tuple[Model, ...] | Failed
    place: Place | Failed | None
    variables: Mapping[str, str]


def gather(*, gpus: int | None = None, device: str = "auto") -> Facts:
    """Look at everything, at the same time; never raises."""
    slow = functools.partial(in_child, seconds=SLOW)
    looks: dict[str, Callable[[], Any]] = {
        "system": find_system,
        "processor": find_processor,
        "memory": find_memory,
        "shared_memory": functools.partial(slow, find_shared_memory),
        "folders": functools.partial(slow, functools.partial(find_folders, models_folder())),
        "network": functools.partial(slow, find_network),
        "nvidia": find_nvidia,
        "engine": functools.partial(in_child, functools.partial(find_engine, device=device, ranks=gpus)),
        "video": functools.partial(in_child, find_video),
        "models": functools.partial(slow, find_models),
        "place": find_own_place,
    }
    with ThreadPoolExecutor(max_workers=len(looks)) as pool:
        started = {name: pool.submit(attempt, look) for name, look in looks.items()}
        found: dict[str, Any] = {name: look.result() for name, look in started.items()}
    return Facts(
        version=__version__,
        package=str(PACKAGE),
        gpus=gpus,
        device=device,
        variables=find_variables(os.environ),
        **found,
    )


def find_shared_memory() -> Space | None:
    """Return the file system through which the ranks of a machine exchange messages."""
    return find_space(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None


def find_own_place() -> Place | None:
    """Return this process's place among the ranks of a launcher. Raises ProbeError if its variables are wrong."""
    try:
        return find_place(os.environ)
    except InputError as error:
        raise ProbeError(error.message) from None


def find_models() -> tuple[Model, ...]:
    """Return the embedded and the fetched models; their JSON files are checked."""
    embedded = sorted(path for path in EMBEDDED.iterdir() if path.is_dir())
    return tuple(_checked(folder) for folder in (*embedded, *local_models()))


def _checked(folder: Path) -> Model:
    try:
        read_card(str(folder))
        fault = ""
    except InputError as error:
        fault = error.message
    return Model(name=folder.name, folder=str(folder), fault=fault)
