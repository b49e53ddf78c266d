"""Every fault that the doctor knows: from findings with one thing wrong to a line with a remedy."""

import dataclasses
from typing import Any

import pytest
from oracles.machines import GB, card, cpu_engine, engine, folders, gpu, machine, nvidia, versions

from vinfinity.doctor.facts import Facts, Model
from vinfinity.doctor.faults import CHECKS, diagnose
from vinfinity.machine.engine import Attention, Use
from vinfinity.machine.host import HostMemory, Network, Processor, Space, System
from vinfinity.machine.nvidia import Holder
from vinfinity.machine.probe import Failed
from vinfinity.machine.video import Video
from vinfinity.parallel.place import Place

CUDA_FAULT = "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."
NO_IMAGE = "AcceleratorError: CUDA error: no kernel image is available for execution on the device"
NOT_READY = "RuntimeError: CUDA driver error: device not ready"
LEFT = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "n0"}


def torchrun(size: int, local: int) -> Place:
    return Place(0, size, 0, local, "n0", 29500, launcher="torchrun")


def variables(**given: str) -> dict[str, Any]:
    return {"variables": given}


def network(**changes: Any) -> dict[str, Any]:
    healthy = {"host": "n0", "address": "10.0.0.1", "interfaces": ("lo", "eth0", "ib0"), "loopback": ""}
    return {"network": Network(**{**healthy, **changes})}


def processor(usable: int) -> dict[str, Any]:
    return {"processor": Processor(name="Xeon", cores=64, usable=usable, vectors="")}


# name of the fault, whether it stops runs, changes of a healthy machine, words of the line
FAULTS: list[tuple[str, bool, dict[str, Any], str]] = [
    # torch and the driver
    ("torch", True, {"engine": Failed("ImportError: libcudart.so.13")}, "libcudart.so.13; install it again"),
    (
        "torch-old",
        True,
        {"engine": engine(versions=versions(torch="2.3.1+cu121"))},
        "2.3.1+cu121 is older than 2.4",
    ),
    ("no-gloo", True, {"engine": engine(backends=("nccl",))}, "no gloo"),
    ("cpu-torch", True, {"engine": cpu_engine()}, "built for CPUs only, and this machine has 2 NVIDIA GPUs"),
    ("cuda", True, {"engine": engine(0, fault=CUDA_FAULT)}, "a build of torch for CUDA 13.0 or older"),
    ("cuda", True, {"engine": engine(0, fault="RuntimeError: CUDA unknown error")}, "reboot"),
    ("cuda", True, {"engine": engine(0)}, "torch sees none of 2 NVIDIA GPUs"),
    (
        "gpu",
        True,
        {"engine": engine(gpus=(gpu(0, fault=NO_IMAGE), gpu(1)))},
        "capability 9.0; this one has sm_80",
    ),
    (
        "gpu",
        True,
        {"engine": engine(1, gpus=(gpu(0, fault=NOT_READY),))},
        "device not ready; set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False",
    ),
    (
        "gpu",
        True,
        {"engine": engine(gpus=(gpu(0), gpu(1, fault="out of memory")))},
        "GPU 1 (NVIDIA H100 80GB HBM3)",
    ),
    (
        "gpu",
        True,
        {"engine": engine(1, gpus=(gpu(0, fault="CUDA-capable device(s) is/are busy or unavailable"),))},
        "end the process that has it to itself",
    ),
    (
        "hidden",
        True,
        {"engine": engine(0), **variables(CUDA_VISIBLE_DEVICES="")},
        "hides 2 NVIDIA GPUs; unset it",
    ),
    ("hidden", False, {"engine": engine(1)}, "torch sees 1 of 2 NVIDIA GPUs"),
    ("hidden", False, variables(CUDA_VISIBLE_DEVICES="0,1,7"), "names GPUs that do not exist"),
    ("no-nccl", True, {"engine": engine(backends=("gloo",))}, "no NCCL, so the 2 GPUs cannot share a video"),
    ("driver", True, {"nvidia": Failed("nvidia-smi: Driver/library version mismatch")}, "reboot"),
    ("driver", True, {"nvidia": Failed("nvidia-smi did not answer within 30 s")}, "a GPU hangs"),
    (
        "driver",
        False,
        {"nvidia": nvidia(0, driver="", on_bus=1), "engine": cpu_engine()},
        "driver is not loaded",
    ),
    (
        "compute-mode",
        True,
        {"nvidia": nvidia(cards=(card(0), card(1, compute_mode="Prohibited")))},
        "-i 1 -c DEFAULT",
    ),
    # GPUs together
    (
        "unequal",
        False,
        {"engine": engine(gpus=(gpu(0), gpu(1, name="NVIDIA L40S")))},
        "H100 80GB HBM3 (85 GB) and",
    ),
    ("unequal", False, {"engine": engine(gpus=(gpu(0), gpu(1, memory=40 * GB, free=40 * GB)))}, "(40 GB)"),
    ("busy", False, {"engine": engine(gpus=(gpu(0), gpu(1, free=2 * GB)))}, "GPU 1: 2.0 of 85.0 GB free"),
    (
        "busy",
        False,
        {
            "engine": engine(gpus=(gpu(0, free=3 * GB), gpu(1, free=2 * GB))),
            "nvidia": nvidia(cards=(card(0, holders=(Holder(77, "python3", None),)), card(1))),
        },
        "GPUs 0, 1: 2.0 of 85.0 GB free on the fullest, held by python3 (process 77)",
    ),
    ("no-p2p", False, {"engine": engine(apart=((0, 1),))}, "none of the GPUs can reach another one directly"),
    ("no-p2p", False, {"engine": engine(4, apart=((0, 3),))}, "GPUs 0-3 cannot reach each other directly"),
    (
        "transport",
        False,
        variables(NCCL_P2P_DISABLE="1"),
        "NCCL_P2P_DISABLE=1: GPUs send through host memory",
    ),
    ("transport", False, variables(NCCL_SHM_DISABLE="1"), "through the network"),
    (
        "interface",
        True,
        variables(NCCL_SOCKET_IFNAME="eno1"),
        "matches none of the network interfaces lo, eth0, ib0",
    ),
    ("interface", True, variables(GLOO_SOCKET_IFNAME="=eth"), "GLOO_SOCKET_IFNAME==eth"),
    (
        "loopback",
        True,
        network(loopback="Connection refused"),
        "cannot connect to itself: Connection refused",
    ),
    (
        "host-name",
        False,
        {**network(address=None), "place": torchrun(8, 4), **variables(TORCHELASTIC_RUN_ID="1")},
        "n0",
    ),
    (
        "host-name",
        False,
        {**network(address="127.0.1.1"), **variables(SLURM_NNODES="2")},
        "stands for 127.0.1.1",
    ),
    (
        "shared-memory",
        False,
        {"shared_memory": Space(total=64 * 2**20, free=64 * 2**20)},
        "/dev/shm has 64 MiB free",
    ),
    ("shared-memory", False, {"shared_memory": None}, "/dev/shm does not exist"),
    # launchers and variables
    (
        "launcher",
        True,
        {"place": torchrun(8, 8), **variables(**LEFT)},
        "waits for 7 other ranks; if torchrun did not",
    ),
    (
        "launcher",
        True,
        {"place": Failed("RANK: x (environment) is not a whole number; start the ranks with torchrun")},
        "RANK: x (environment) is not a whole number; start the ranks with torchrun",
    ),
    ("srun", False, variables(SLURM_JOB_ID="7", SLURM_NTASKS="4"), "one process of a SLURM job of 4 tasks"),
    (
        "refused",
        True,
        {
            "engine": engine(
                use=Use("", "", None, 0, "device: auto found 2 CUDA GPUs for 4 ranks; add --device cpu")
            )
        },
        "device: auto found 2 CUDA GPUs for 4 ranks; add --device cpu",
    ),
    (
        "slow",
        False,
        variables(CUDA_LAUNCH_BLOCKING="1"),
        "CUDA_LAUNCH_BLOCKING=1: every operation on a GPU is waited",
    ),
    ("slow", False, variables(TORCH_DISTRIBUTED_DEBUG="DETAIL"), "every message is checked"),
    (
        "allocator",
        False,
        variables(PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:512"),
        "add expandable_segments:True",
    ),
    ("allocator", False, variables(PYTORCH_ALLOC_CONF="expandable_segments:False"), "PYTORCH_ALLOC_CONF"),
    # the host
    ("cores", False, {"gpus": 8, **processor(4)}, "8 ranks share 4 cores"),
    ("threads", False, variables(OMP_NUM_THREADS="many"), "is not a number of threads"),
    ("threads", False, variables(OMP_NUM_THREADS="64"), "OMP_NUM_THREADS=64 on 16 cores"),
    ("threads", False, {"gpus": 2, **variables(OMP_NUM_THREADS="16")}, "each of 2 ranks on 16 cores"),
    (
        "threads",
        False,
        {"engine": cpu_engine(), "nvidia": None, **variables(OMP_NUM_THREADS="1")},
        "1 of 16 cores",
    ),
    (
        "host-memory",
        False,
        {"memory": HostMemory(total=8 * GB, free=2 * GB)},
        "2.0 GB of host memory are free",
    ),
    (
        "read-only",
        True,
        {"folders": folders(writable=False)},
        "/data/t (temporary files) cannot be written to",
    ),
    (
        "read-only",
        False,
        {"folders": folders(writable=False)},
        "/data/m (models) cannot be written to; set XDG_DATA",
    ),
    ("read-only", False, {"folders": folders(writable=False)}, "name another folder with --out"),
    ("disk", False, {"folders": folders(free=GB)}, "/data/w (working folder) has 1.0 GB of disk space left"),
    # libraries and models
    ("pyav", True, {"video": Failed("ImportError: libavcodec.so")}, "libavcodec.so; install it again"),
    ("h264", True, {"video": Video("18.1.0", "8.1", ("h264_nvenc",))}, "has no libx264"),
    ("models", True, {"models": ()}, "the embedded model is missing"),
    ("models", True, {"models": Failed("OSError: stale file handle")}, "cannot be listed"),
    (
        "model",
        False,
        {"models": (Model("zs", "/m/zs", "model: /m/zs has no vae; fetch it again"),)},
        "; fetch it again",
    ),
    ("unknown", False, {"memory": Failed("OSError: no")}, "memory: cannot be read (OSError: no)"),
]


@pytest.mark.parametrize(
    ("name", "stops", "changes", "words"),
    FAULTS,
    ids=[f"{name}: {words[:40]}" for name, _, _, words in FAULTS],
)
def test_a_fault_is_found_and_named_with_its_remedy(
    name: str, stops: bool, changes: dict[str, Any], words: str
) -> None:
    lines = {fault.line: fault for fault in diagnose(machine(**changes)) if fault.name == name}
    found = [fault for line, fault in lines.items() if words in line]
    assert len(found) == 1, list(lines)
    assert found[0].stops is stops
    assert found[0].remedy
    assert "\n" not in found[0].line


def test_a_healthy_machine_has_no_fault() -> None:
    assert diagnose(machine()) == []


@pytest.mark.parametrize(
    "changes",
    [
        # torch from PyPI is built for CUDA, also where there are no GPUs
        {"nvidia": None, "engine": engine(0, fault="RuntimeError: Found no NVIDIA driver on your system.")},
        {"nvidia": None, "engine": cpu_engine()},
        # a container without GPUs on a machine that has some: its driver shines through
        {"nvidia": nvidia(0), "engine": cpu_engine()},
        # a container with GPUs, but without the driver's tools
        {"nvidia": nvidia(0, nodes=2)},
        # the launcher of this process is torchrun
        {"place": torchrun(8, 8), "variables": {**LEFT, "TORCHELASTIC_RUN_ID": "1"}},
        {"variables": {"NCCL_SOCKET_IFNAME": "eth", "GLOO_SOCKET_IFNAME": "^docker,lo"}},
        {"variables": {"CUDA_VISIBLE_DEVICES": "0,1", "NCCL_P2P_DISABLE": "0", "CUDA_LAUNCH_BLOCKING": "0"}},
        {"variables": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:512"}},
        # where vinfinity leaves them off itself
        {
            "engine": engine(versions=versions(cuda=None, rocm="7.2")),
            "variables": {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"},
        },
        {
            "system": System(host="n0", system="Ubuntu", kernel="6.6", python="3.12.1", container="WSL"),
            "variables": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"},
        },
        # one GPU sends nothing
        {"engine": engine(1, backends=("gloo",)), "nvidia": nvidia(1), "shared_memory": None},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_what_is_usual_is_no_fault(changes: dict[str, Any]) -> None:
    assert diagnose(machine(**changes)) == []


def test_faults_of_gpus_do_not_stop_runs_on_the_cpu() -> None:
    changes = {"device": "cpu", "engine": cpu_engine(), "nvidia": Failed("nvidia-smi: no driver")}
    assert [(fault.name, fault.stops) for fault in diagnose(machine(**changes))] == [("driver", False)]


def test_what_stops_runs_comes_first() -> None:
    changes = {"engine": engine(backends=("gloo",)), **variables(CUDA_LAUNCH_BLOCKING="1"), "models": ()}
    stops = [fault.stops for fault in diagnose(machine(**changes))]
    assert stops == sorted(stops, reverse=True)
    assert set(stops) == {True, False}


def test_nothing_that_failed_to_be_found_makes_a_check_fail() -> None:
    """Every finding may be a failure, alone and together with all others."""
    looks = [field.name for field in dataclasses.fields(Facts) if "Failed" in str(field.type)]
    assert len(looks) == 11
    for names in (*([name] for name in looks), looks):
        broken = machine(**dict.fromkeys(names, Failed("broken")))
        assert diagnose(broken)
    parts = {"backends": Failed("x"), "apart": Failed("x"), "use": Failed("x")}
    assert [fault.name for fault in diagnose(machine(engine=engine(**parts)))] == ["no-gloo", "no-nccl"]
    attention = Use("cuda", "fp16", Failed("x"), 1, "")
    assert diagnose(machine(engine=engine(use=attention))) == []


def test_every_check_is_tried_here() -> None:
    """Each check finds something in FAULTS."""
    for check in CHECKS:
        assert any(list(check(machine(**changes))) for _, _, changes, _ in FAULTS), check.__name__


def test_attention_backends_are_no_fault() -> None:
    assert diagnose(machine(engine=engine(use=Use("cuda", "fp16", Attention("math", "math"), 1, "")))) == []
