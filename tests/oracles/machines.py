"""Machines that are not here: an nvidia-smi and libraries as scripts, and the findings on a healthy machine."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from vinfinity.doctor.facts import Facts, Model
from vinfinity.machine.engine import Attention, Engine, Gpu, Use, Versions
from vinfinity.machine.host import Folder, HostMemory, Network, Processor, Space, System
from vinfinity.machine.nvidia import Card, Link, Nvidia
from vinfinity.machine.video import Video

GB = 10**9
# as nvidia-smi prints it: header underlined, columns between tabs
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m\n"
    "GPU0\t X \tNV12\tSYS\tPXB\t0-31\t0\n"
    "GPU1\tNV12\t X \tSYS\tPXB\t0-31\t0\n"
    "GPU2\tSYS\tSYS\t X \tSYS\t32-63\t1\n"
    "NIC0\tPXB\tPXB\tSYS\t X \t\t\n\n"
    "Legend:\n\n  X    = Self\n"
)
BANNER = "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4 |"


def card_line(
    index: int, *, name: str = "NVIDIA A100-SXM4-80GB", free: int = 80000, mode: str = "Default"
) -> str:
    """Return a GPU in the words of nvidia-smi."""
    return f"{index}, {name}, GPU-{index}{index}, 81920, {free}, 550.54.15, 4, 16, {mode}"


def install_nvidia_smi(folder: Path, *lines: str, holders: str = "", fails: str = "") -> str:
    """Write an nvidia-smi that lists GPUs, or fails with a message. Returns a PATH on which it comes first."""
    script = folder / "nvidia-smi"
    answers = {
        "--query-gpu*": "\n".join(lines),
        "--query-compute-apps*": holders,
        "topo": TOPOLOGY,
        "*": BANNER,
    }
    cases = "\n".join(f"  {pattern}) cat {folder}/{index} ;;" for index, pattern in enumerate(answers))
    for index, answer in enumerate(answers.values()):
        (folder / str(index)).write_text(f"{answer}\n" if answer else "", encoding="utf-8")
    failure = f"echo '{fails}'; exit 18\n" if fails else ""
    script.write_text(f'#!/bin/sh\n{failure}case "$1" in\n{cases}\nesac\n', encoding="utf-8")
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def install_broken(folder: Path, package: str, code: str) -> None:
    """Write a package that runs `code` when it is imported, for a PYTHONPATH on which it comes first."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"{code}\n", encoding="utf-8")


def gpu(index: int, **changes: Any) -> Gpu:
    """Return a GPU that works."""
    healthy = Gpu(
        index=index,
        name="NVIDIA H100 80GB HBM3",
        uuid=f"GPU-{index}",
        capability="9.0",
        memory=85 * GB,
        free=84 * GB,
        fault="",
    )
    return dataclasses.replace(healthy, **changes)


def card(index: int, **changes: Any) -> Card:
    """Return the same GPU, as its driver sees it."""
    healthy = Card(
        index=index,
        name="NVIDIA H100 80GB HBM3",
        uuid=f"GPU-{index}",
        memory=85 * GB,
        free=84 * GB,
        pcie="PCIe 5 x16",
        compute_mode="Default",
    )
    return dataclasses.replace(healthy, **changes)


def nvidia(count: int = 2, /, **changes: Any) -> Nvidia:
    """Return a driver with GPUs that NVLink connects."""
    links = tuple(Link(a, b, "NV18") for a in range(count) for b in range(a + 1, count))
    healthy = Nvidia(
        driver="580.65.06",
        cuda="13.0",
        cards=tuple(map(card, range(count))),
        links=links,
        nodes=count,
        on_bus=count,
    )
    return dataclasses.replace(healthy, **changes)


def versions(**changes: Any) -> Versions:
    """Return a build of torch for CUDA."""
    healthy = Versions(
        torch="2.13.0+cu130", cuda="13.0", rocm=None, cudnn="9.15.1", nccl="2.28.9", triton="3.7.0"
    )
    return dataclasses.replace(healthy, **changes)


def engine(count: int = 2, /, **changes: Any) -> Engine:
    """Return a torch that sees GPUs and can use them."""
    healthy = Engine(
        versions=versions(),
        backends=("gloo", "nccl"),
        architectures=("sm_80", "sm_90"),
        gpus=tuple(map(gpu, range(count))),
        fault="",
        apart=(),
        use=Use(
            device="cuda",
            dtype="fp16",
            attention=Attention("efficient", "flash"),
            threads=16,
            refused="",
            allocator="expandable_segments:True",
        ),
    )
    return dataclasses.replace(healthy, **changes)


def cpu_engine(**changes: Any) -> Engine:
    """Return a torch without GPUs."""
    use = Use(device="cpu", dtype="fp32", attention=Attention("flash", "flash"), threads=16, refused="")
    return engine(0, **{"versions": versions(cuda=None, cudnn=None, nccl=None), "use": use, **changes})


def folders(*, writable: bool = True, free: int = 500 * GB) -> tuple[Folder, ...]:
    """Return the folders that runs write to."""
    uses = ("working folder", "home", "models", "temporary files")
    return tuple(Folder(use, f"/data/{use[0]}", writable, Space(total=1000 * GB, free=free)) for use in uses)


def machine(**changes: Any) -> Facts:
    """Return the findings on a healthy machine with two GPUs."""
    healthy = Facts(
        version="0.1.0",
        package="/opt/vinfinity",
        gpus=None,
        device="auto",
        system=System(host="n0", system="Debian", kernel="6.1", python="3.12.1", container=""),
        processor=Processor(name="Intel Xeon", cores=64, usable=16, vectors="AMX"),
        memory=HostMemory(total=256 * GB, free=200 * GB),
        shared_memory=Space(total=128 * GB, free=128 * GB),
        folders=folders(),
        network=Network(host="n0", address="10.0.0.1", interfaces=("lo", "eth0", "ib0"), loopback=""),
        nvidia=nvidia(),
        engine=engine(),
        video=Video(pyav="18.1.0", ffmpeg="8.1", encoders=("libx264", "png")),
        models=(Model("mini", "/opt/vinfinity/assets/mini", ""),),
        place=None,
        variables={},
    )
    return dataclasses.replace(healthy, **changes)
