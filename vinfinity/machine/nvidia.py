"""NVIDIA's GPUs as their driver sees them, whether or not torch can use them. Loads no torch."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vinfinity.machine.probe import ProbeError, attempt, known, run_tool

MIB = 2**20
# fields that drivers of the last ten years know
FIELDS = (
    "index",
    "name",
    "uuid",
    "memory.total",
    "memory.free",
    "driver_version",
    "pcie.link.gen.max",
    "pcie.link.width.max",
    "compute_mode",
)
KERNEL_MODULE = Path("/proc/driver/nvidia/version")
DEVICES = Path("/dev")
PCI = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR, DISPLAY_CLASSES = "0x10de", ("0x0300", "0x0302")


@dataclass(frozen=True)
class Holder:
    """A process that uses memory of a GPU. memory: in bytes; None if the driver does not say."""

    pid: int
    name: str
    memory: int | None


@dataclass(frozen=True)
class Card:
    """A GPU of this machine, visible to this process or not. memory, free: in bytes; None if unknown (MIG)."""

    index: int
    name: str
    uuid: str
    memory: int | None
    free: int | None
    pcie: str
    compute_mode: str
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True)
class Link:
    """The connection of two GPUs, as nvidia-smi names it: NV18 is NVLink over 18 lanes, PIX, PXB, PHB, NODE and SYS are
    PCIe, from near to far.
    """

    first: int
    second: int
    kind: str


@dataclass(frozen=True)
class Nvidia:
    """driver: version, "" if none is loaded. cuda: the newest version of CUDA that it supports, "" if not known. cards,
    links: one for each pair; empty if the driver's tools are missing, as in many containers. nodes: GPUs that this
    process may open. on_bus: GPUs of the machine, with or without a driver.
    """

    driver: str
    cuda: str = ""
    cards: tuple[Card, ...] = ()
    links: tuple[Link, ...] = ()
    nodes: int = 0
    on_bus: int = 0

    @property
    def usable(self) -> int:
        """GPUs that this process should be able to use, unless CUDA_VISIBLE_DEVICES hides them."""
        return len(self.cards) or self.nodes


def find_nvidia() -> Nvidia | None:
    """Return the driver and its GPUs; None on a machine without any sign of them.

    Raises ProbeError if the driver's tool is there, but does not answer as it should.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        found = Nvidia(driver=kernel_module(), nodes=device_nodes(), on_bus=pci_gpus())
        return found if found.driver or found.nodes or found.on_bus else None
    listed = list_cards(tool)
    if not listed:
        return None
    cards, drivers = zip(*listed, strict=True)
    holders = known(attempt(find_holders, tool)) or {}
    cards = tuple(replace(card, holders=tuple(holders.get(card.uuid, ()))) for card in cards)
    banner = known(attempt(run_tool, [tool])) or ""
    cuda = re.search(r"CUDA(?: UMD)? Version:\s*([\d.]+)", banner)
    topology = known(attempt(run_tool, [tool, "topo", "-m"])) or "" if len(cards) > 1 else ""
    return Nvidia(
        driver=drivers[0],
        cuda=cuda[1] if cuda else "",
        cards=cards,
        links=parse_topology(topology),
        nodes=device_nodes(),
        on_bus=pci_gpus(),
    )


def list_cards(tool: str) -> list[tuple[Card, str]]:
    """Return the GPUs and their driver's version, without creating a context on them. Raises ProbeError."""
    out = run_tool([tool, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"])
    if not any(line.count(",") >= len(FIELDS) - 1 for line in out.splitlines()):
        if "no devices" in out.lower():
            return []
        raise ProbeError(f"nvidia-smi: {' '.join(out.split()) or 'printed nothing'}")
    return [parse_card(line) for line in out.splitlines() if line.strip()]


def visible_cards(cards: Sequence[Card], variable: str | None) -> list[Card]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, in its order; all of them if it is not set.

    Numbers count in the order of nvidia-smi. CUDA's own differs from it only among GPUs of several kinds.
    """
    if variable is None:
        return list(cards)
    found = []
    for name in (entry.strip() for entry in variable.split(",")):
        card = next((card for card in cards if name == str(card.index) or card.uuid.startswith(name)), None)
        if card is None or not name:
            # CUDA ignores everything from the first name on that it does not know
            break
        found.append(card)
    return found


def parse_card(line: str) -> tuple[Card, str]:
    """Return a GPU from nvidia-smi's values for FIELDS, and the version of the driver. Raises ProbeError."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(FIELDS) or not values[0].isdecimal():
        raise ProbeError(f"nvidia-smi: {line.strip()}")
    index, name, uuid, total, free, driver, generation, width, mode = values
    pcie = f"PCIe {generation} x{width}" if generation.isdecimal() and width.isdecimal() else ""
    card = Card(
        index=int(index),
        name=name,
        uuid=uuid,
        memory=int(total) * MIB if total.isdecimal() else None,
        free=int(free) * MIB if free.isdecimal() else None,
        pcie=pcie,
        compute_mode=mode,
    )
    return card, driver


def find_holders(tool: str) -> dict[str, list[Holder]]:
    """Return the processes that use memory of each GPU, by its UUID. Raises ProbeError."""
    fields = "gpu_uuid,pid,used_memory,process_name"
    found: dict[str, list[Holder]] = {}
    for line in run_tool(
        [tool, f"--query-compute-apps={fields}", "--format=csv,noheader,nounits"]
    ).splitlines():
        values = [value.strip() for value in line.split(",", 3)]
        if len(values) == 4 and values[1].isdecimal():
            uuid, pid, memory, name = values
            used = int(memory) * MIB if memory.isdecimal() else None
            found.setdefault(uuid, []).append(Holder(pid=int(pid), name=Path(name).name, memory=used))
    return found


def parse_topology(text: str) -> tuple[Link, ...]:
    """Return the links of all pairs of GPUs from the matrix of `nvidia-smi topo -m`; none if it cannot be read."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    rows = [line.split() for line in plain.splitlines()]
    head = next((row for row in rows if row[:1] == ["GPU0"] and "X" not in row), [])
    columns = [int(name[3:]) for name in head if re.fullmatch(r"GPU\d+", name)]
    links = []
    for row in rows:
        if len(row) > len(columns) and re.fullmatch(r"GPU\d+", row[0]) and row != head:
            own = int(row[0][3:])
            for other, kind in zip(columns, row[1:], strict=False):
                if other > own:
                    links.append(Link(first=own, second=other, kind=kind))
    return tuple(links)


def kernel_module(file: Path = KERNEL_MODULE) -> str:
    """Return the version of the loaded kernel module; "" if none is loaded or it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    version = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return version[1] if version else ""


def driver_version() -> str:
    """Return only the version of the driver; "" if there is none."""
    version = kernel_module()
    if version or shutil.which("nvidia-smi") is None:
        return version
    out = (
        known(attempt(run_tool, ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])) or ""
    )
    return out.splitlines()[0].strip() if out.strip() else ""


def device_nodes(folder: Path = DEVICES) -> int:
    """Return the GPUs that this process may open: a container has device files only for those passed to it."""
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in folder.glob("nvidia*"))


def pci_gpus(folder: Path = PCI) -> int:
    """NVIDIA's GPUs on the PCI bus, with or without a driver."""
    count = 0
    for device in folder.glob("*"):
        try:
            vendor = (device / "vendor").read_text(encoding="ascii").strip()
            kind = (device / "class").read_text(encoding="ascii").strip()
        except OSError:
            continue
        count += vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASSES)
    return count
