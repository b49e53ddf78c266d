"""What is wrong with a machine, and what to do about it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vinfinity.doctor.facts import Facts
from vinfinity.machine.engine import Engine, Gpu
from vinfinity.machine.host import shortened
from vinfinity.machine.nvidia import Nvidia
from vinfinity.machine.probe import Failed, known
from vinfinity.machine.video import NEEDED
from vinfinity.parallel.place import Place
from vinfinity.system.pytorch import OLDEST, allocator_variable, uses_expandable_segments

GB, MIB = 10**9, 2**20
# NCCL needs some tens of MB per pair of ranks; containers often have 64 MiB
LEAST_SHARED = 1024 * MIB
# below this part of its memory, a GPU counts as in use by others
MOSTLY_FREE = 0.85
# what a rank takes of the host at least: with CUDA's libraries, and without
LEAST_HOST, LEAST_CPU = 3 * GB, 1 * GB
# a long video's checkpoints, latents and MP4
LEAST_DISK = 5 * GB
# cores beyond which a single thread wastes most of a processor
MANY_CORES = 4
# variables for finding faults, which make runs slow
SLOW_VARIABLES = {
    "CUDA_LAUNCH_BLOCKING": "every operation on a GPU is waited for",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "every tensor is allocated by the driver",
    "TORCH_NCCL_BLOCKING_WAIT": "every message is waited for",
    "NCCL_BLOCKING_WAIT": "every message is waited for",
    "TORCH_DISTRIBUTED_DEBUG": "every message is checked",
}
# what these variables do to the messages between GPUs
SLOW_TRANSPORTS = {
    "NCCL_P2P_DISABLE": "GPUs send through host memory",
    "NCCL_SHM_DISABLE": "GPUs that cannot reach each other send through the network",
}


@dataclass(frozen=True)
class Fault:
    """Something wrong with the machine.

    name: that of the kind of fault. stops: whether a run on this machine's best devices cannot start or cannot succeed.
    """

    name: str
    stops: bool
    problem: str
    remedy: str

    @property
    def line(self) -> str:
        """The fault as one line."""
        return f"{self.problem}; {self.remedy}"


def diagnose(facts: Facts) -> list[Fault]:
    """Return all faults, those that stop runs first."""
    found = [fault for check in CHECKS for fault in check(facts)]
    return sorted(found, key=lambda fault: not fault.stops)


# ---- torch and the driver ----


def check_engine(facts: Facts) -> Iterator[Fault]:
    """torch itself, and whether it can use the GPUs that are here."""
    engine, nvidia = facts.engine, facts.nvidia
    if isinstance(engine, Failed):
        remedy = "install it again: pip install --force-reinstall torch"
        yield Fault("torch", True, f"torch cannot be used: {engine.reason}", remedy)
        return
    version = re.match(r"(\d+)\.(\d+)", engine.versions.torch)
    if version and (int(version[1]), int(version[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        yield Fault(
            "torch-old", True, f"torch {engine.versions.torch} is older than {oldest}", "install a newer one"
        )
    if isinstance(engine.backends, Failed) or "gloo" not in engine.backends:
        problem = "this build of torch has no gloo, so several ranks cannot talk to each other"
        yield Fault("no-gloo", True, problem, "install torch from pytorch.org or PyPI")
    if facts.device == "cpu":
        return
    usable = nvidia.usable if isinstance(nvidia, Nvidia) else 0
    if engine.versions.cuda is None and engine.versions.rocm is None:
        if usable:
            problem = (
                f"torch {engine.versions.torch} was built for CPUs only, and this machine has {_gpus(usable)}"
            )
            yield Fault("cpu-torch", True, problem, "install a CUDA build: pytorch.org/get-started")
        return
    if engine.fault:
        # the usual torch has CUDA: without GPUs, its complaint means nothing
        if usable or isinstance(nvidia, Failed):
            remedy = _cuda_remedy(engine, nvidia)
            yield Fault("cuda", True, f"torch cannot use the GPUs: {engine.fault}", remedy)
        return
    yield from _hidden(facts, engine, usable)
    reasons: dict[str, list[Gpu]] = {}
    for gpu in engine.gpus:
        if gpu.fault:
            reasons.setdefault(gpu.fault, []).append(gpu)
    for reason, gpus in reasons.items():
        remedy = "run nvidia-smi; reset the GPU, or leave it out of CUDA_VISIBLE_DEVICES"
        if "no kernel image" in reason.lower():
            built = shortened(engine.architectures, most=8)
            capability = gpus[0].capability
            remedy = f"install a build of torch for compute capability {capability}; this one has {built}"
        elif "cuda driver error" in reason.lower() or "operation not supported" in reason.lower():
            remedy = "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False, or update the driver"
        elif "out of memory" in reason.lower():
            remedy = "end the processes that hold its memory, or leave it out of CUDA_VISIBLE_DEVICES"
        elif "busy or unavailable" in reason.lower():
            remedy = "end the process that has it to itself, or leave it out of CUDA_VISIBLE_DEVICES"
        yield Fault("gpu", True, f"{_numbers(gpus)} ({gpus[0].name}) cannot compute: {reason}", remedy)
    if len(engine.gpus) > 1 and "nccl" not in (known(engine.backends) or ()):
        problem = f"this build of torch has no NCCL, so the {len(engine.gpus)} GPUs cannot share a video"
        yield Fault("no-nccl", True, problem, "install torch from pytorch.org or PyPI (Linux)")


def _hidden(facts: Facts, engine: Engine, usable: int) -> Iterator[Fault]:
    """GPUs that are here, and that torch does not see."""
    named, seen = facts.variables.get("CUDA_VISIBLE_DEVICES"), len(engine.gpus)
    if usable and not seen:
        if named is not None:
            problem = f"CUDA_VISIBLE_DEVICES={named} hides {_gpus(usable)}"
            yield Fault("hidden", True, problem, "unset it, or name GPUs such as 0,1")
        else:
            yield Fault("cuda", True, f"torch sees none of {_gpus(usable)}", "run nvidia-smi, and reboot")
    elif named is None and usable > seen:
        remedy = "look for MIG mode or a failing GPU with nvidia-smi"
        yield Fault("hidden", False, f"torch sees {seen} of {_gpus(usable)}", remedy)
    elif named and seen and len(named.split(",")) > seen:
        problem = f"CUDA_VISIBLE_DEVICES={named} names GPUs that do not exist; torch sees {seen}"
        yield Fault("hidden", False, problem, "correct or unset it")


def check_driver(facts: Facts) -> Iterator[Fault]:
    """NVIDIA's driver."""
    nvidia = facts.nvidia
    stops = facts.device != "cpu"
    if isinstance(nvidia, Failed):
        remedy = "install or reload the driver"
        if "mismatch" in nvidia.reason.lower():
            remedy = "the driver was updated while it was loaded: reboot"
        elif "did not answer" in nvidia.reason:
            remedy = "a GPU hangs: see dmesg for Xid errors, and reboot"
        yield Fault("driver", stops, f"the NVIDIA driver does not work: {nvidia.reason}", remedy)
        return
    if nvidia is None:
        return
    if not nvidia.driver and nvidia.on_bus:
        problem = f"{_gpus(nvidia.on_bus)} on the PCI bus, but NVIDIA's driver is not loaded"
        yield Fault("driver", False, problem, "install it to use the GPUs")
    for card in nvidia.cards:
        if card.compute_mode.lower() == "prohibited":
            problem = f"GPU {card.index} ({card.name}) is in compute mode Prohibited"
            yield Fault("compute-mode", stops, problem, f"sudo nvidia-smi -i {card.index} -c DEFAULT")


def _cuda_remedy(engine: Engine, nvidia: Nvidia | Failed | None) -> str:
    reason = engine.fault.lower()
    if "too old" in reason:
        newest = (
            f" {nvidia.cuda} or older" if isinstance(nvidia, Nvidia) and nvidia.cuda else " an older version"
        )
        return f"update the driver, or install a build of torch for CUDA{newest}"
    if "no nvidia driver" in reason or "no cuda-capable device" in reason:
        return "install the driver; in a container, pass the GPUs on (docker run --gpus all)"
    return "run nvidia-smi; after an update of the driver or a suspend, reboot"


def _gpus(count: int) -> str:
    return f"{count} NVIDIA GPU{'s' * (count > 1)}"


def _numbers(gpus: Sequence[Gpu]) -> str:
    numbers = shortened((str(gpu.index) for gpu in gpus), most=8)
    return f"GPU{'s' * (len(gpus) > 1)} {numbers}"


# ---- GPUs together ----


def check_gpus(facts: Facts) -> Iterator[Fault]:
    """GPUs that slow each other down, and those in use."""
    engine = known(facts.engine)
    if engine is None or facts.device == "cpu":
        return
    names = {gpu.name for gpu in engine.gpus}
    memories = [gpu.memory for gpu in engine.gpus]
    if len(names) > 1 or (memories and min(memories) < 0.9 * max(memories)):
        kinds = " and ".join(sorted({f"{gpu.name} ({gpu.memory / GB:.0f} GB)" for gpu in engine.gpus}))
        problem = f"the GPUs are unequal: {kinds}; the slowest and the smallest one decide"
        yield Fault("unequal", False, problem, "choose equal ones with CUDA_VISIBLE_DEVICES")
    nvidia = known(facts.nvidia)
    cards = {card.uuid: card for card in (nvidia.cards if nvidia is not None else ())}
    busy = [gpu for gpu in engine.gpus if gpu.free is not None and gpu.free < MOSTLY_FREE * gpu.memory]
    if busy:
        least = min(busy, key=lambda gpu: gpu.free or 0)
        holders = [holder for gpu in busy if gpu.uuid in cards for holder in cards[gpu.uuid].holders]
        by = shortened((f"{holder.name} (process {holder.pid})" for holder in holders), most=3)
        problem = f"{_numbers(busy)}: {(least.free or 0) / GB:.1f} of {least.memory / GB:.1f} GB free"
        problem += " on the fullest" if len(busy) > 1 else ""
        problem += f", held by {by}" if by else ""
        yield Fault("busy", False, problem, "end other programs, or choose other GPUs")
    apart = known(engine.apart)
    if apart:
        all_pairs = len(apart) == len(engine.gpus) * (len(engine.gpus) - 1) // 2
        pairs = (
            "none of the GPUs" if all_pairs else "GPUs " + shortened((f"{a}-{b}" for a, b in apart), most=6)
        )
        reach = "can reach another one directly" if all_pairs else "cannot reach each other directly"
        problem = f"{pairs} {reach}; messages go through host memory"
        remedy = "expected on GeForce cards; else turn off ACS/IOMMU in the firmware"
        yield Fault("no-p2p", False, problem, remedy)


def check_transports(facts: Facts) -> Iterator[Fault]:
    """Report how ranks on GPUs would send messages."""
    for variable, effect in SLOW_TRANSPORTS.items():
        if facts.variables.get(variable, "0") not in ("", "0"):
            problem = f"{variable}={facts.variables[variable]}: {effect}, which is slow"
            yield Fault("transport", False, problem, "unset it, unless runs hang without it")
    network = known(facts.network)
    if network is not None:
        for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            value = facts.variables.get(variable, "")
            if value and not _names_an_interface(value, network.interfaces):
                have = shortened(network.interfaces, most=8)
                problem = f"{variable}={value} matches none of the network interfaces {have}"
                yield Fault("interface", True, problem, "correct or unset it")
        if network.loopback:
            problem = f"this machine cannot connect to itself: {network.loopback}"
            yield Fault("loopback", True, problem, "let localhost stand for 127.0.0.1, or start one rank")
        elif _several_nodes(facts) and (network.address is None or network.address.startswith("127.")):
            stands = "cannot be resolved" if network.address is None else f"stands for {network.address}"
            problem = f"the host name {network.host} {stands}, so ranks on other nodes may not reach this one"
            yield Fault("host-name", False, problem, "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME")
    shared = facts.shared_memory
    engine = known(facts.engine)
    if engine is None or len(engine.gpus) < 2 or isinstance(shared, Failed):
        return
    if shared is None or shared.free < LEAST_SHARED:
        size = "does not exist" if shared is None else f"has {shared.free / MIB:,.0f} MiB free"
        problem = f"/dev/shm {size}; NCCL may fail when ranks meet"
        yield Fault(
            "shared-memory", False, problem, "give the container more: docker run --ipc=host or --shm-size=8g"
        )


def _names_an_interface(value: str, interfaces: tuple[str, ...]) -> bool:
    """Return whether NCCL's list of prefixes, or of exact names after `=`, matches an interface; `^` excludes."""
    if value.startswith("^"):
        return True
    exact = value.startswith("=")
    wanted = [name.strip() for name in value.removeprefix("=").split(",")]
    return any(
        interface == name or (not exact and interface.startswith(name))
        for name in wanted
        for interface in interfaces
    )


def _several_nodes(facts: Facts) -> bool:
    place = facts.place
    spread = isinstance(place, Place) and place.size > place.local_size
    nodes = facts.variables.get("SLURM_NNODES", "1")
    return spread or (nodes.isdecimal() and int(nodes) > 1)


# ---- launchers and variables ----


def check_launcher(facts: Facts) -> Iterator[Fault]:
    """Variables of launchers: left over from other programs, or of a job whose other tasks do not run vinfinity."""
    variables, place = facts.variables, facts.place
    if isinstance(place, Failed):
        yield Fault("launcher", True, *_problem_and_remedy(place.reason))
    elif place is not None and place.launcher == "torchrun" and "TORCHELASTIC_RUN_ID" not in variables:
        others = place.size - 1
        waits = f"a run waits for {others} other rank{'s' * (others > 1)}"
        problem = f"RANK and WORLD_SIZE={place.size} are set, but not by torchrun: {waits}"
        yield Fault("launcher", True, problem, place.way_out)
    elif place is None:
        tasks = variables.get("SLURM_NTASKS", "1")
        if "SLURM_JOB_ID" in variables and tasks.isdecimal() and int(tasks) > 1:
            problem = f"this is one process of a SLURM job of {tasks} tasks"
            yield Fault("srun", False, problem, "start all of them with srun, or give --gpus")
    engine = known(facts.engine)
    use = known(engine.use) if engine is not None else None
    if use is not None and use.refused:
        yield Fault("refused", True, *_problem_and_remedy(use.refused))


def _problem_and_remedy(message: str) -> tuple[str, str]:
    """Return an InputError's message in two parts."""
    problem, _, remedy = message.rpartition("; ")
    return (problem, remedy) if problem else (message, "change the options")


def check_variables(facts: Facts) -> Iterator[Fault]:
    """Variables that make runs slow, or take more memory."""
    for variable, effect in SLOW_VARIABLES.items():
        value = facts.variables.get(variable, "0")
        if value.upper() not in ("", "0", "OFF", "FALSE"):
            yield Fault("slow", False, f"{variable}={value}: {effect}, which is slow", "unset it")
    engine, system = known(facts.engine), known(facts.system)
    given = allocator_variable(facts.variables)
    if given is None or engine is None or not engine.gpus or uses_expandable_segments(facts.variables):
        return
    if engine.versions.rocm is not None or (system is not None and system.container == "WSL"):
        # where vinfinity leaves them off as well
        return
    lacks = f"{given}={facts.variables[given]} has no expandable segments"
    problem = f"{lacks}: runs may need 1.7 times the planned memory"
    yield Fault("allocator", False, problem, f"add expandable_segments:True, or unset {given}")


# ---- the host ----


def check_threads(facts: Facts) -> Iterator[Fault]:
    """Threads and cores."""
    processor, engine = known(facts.processor), known(facts.engine)
    if processor is None:
        return
    cores, ranks = processor.usable, _local_ranks(facts)
    given = facts.variables.get("OMP_NUM_THREADS", "")
    use = known(engine.use) if engine is not None else None
    if cores < ranks:
        problem = f"{ranks} ranks share {cores} core{'s' * (cores > 1)}"
        yield Fault(
            "cores", False, problem, "start fewer ranks, or ask for more cores (srun --cpus-per-task)"
        )
    elif given and not (given.isdecimal() and int(given)):
        problem = f"OMP_NUM_THREADS={given} is not a number of threads"
        yield Fault("threads", False, problem, "correct or unset it")
    elif given and int(given) * ranks > cores:
        each = f" for each of {ranks} ranks" if ranks > 1 else ""
        problem = (
            f"OMP_NUM_THREADS={given}{each} on {cores} core{'s' * (cores > 1)}: threads wait for each other"
        )
        yield Fault("threads", False, problem, f"set it to {cores // ranks}, or unset it")
    elif given and int(given) * ranks * MANY_CORES <= cores and use is not None and use.device == "cpu":
        problem = f"OMP_NUM_THREADS={given}: runs use {int(given) * ranks} of {cores} cores"
        yield Fault("threads", False, problem, f"set it to {cores // ranks}, or unset it")


def _local_ranks(facts: Facts) -> int:
    """Ranks that a run would have on this machine."""
    return facts.place.local_size if isinstance(facts.place, Place) else facts.gpus or 1


def check_host(facts: Facts) -> Iterator[Fault]:
    """Memory and folders of the host."""
    memory, folders, ranks = known(facts.memory), known(facts.folders) or (), _local_ranks(facts)
    engine = known(facts.engine)
    each_needs = LEAST_HOST if engine is not None and engine.gpus else LEAST_CPU
    if memory is not None and memory.free < each_needs * ranks:
        each = f" for {ranks} ranks" if ranks > 1 else ""
        problem = f"{memory.free / GB:.1f} GB of host memory are free{each}"
        yield Fault("host-memory", False, problem, "end other programs, or ask for a job with more memory")
    for folder in folders:
        if not folder.writable:
            stops = folder.use == "temporary files"
            yield Fault(
                "read-only", stops, f"{folder.path} ({folder.use}) cannot be written to", _REMEDY[folder.use]
            )
        elif not isinstance(folder.space, Failed) and folder.space.free < LEAST_DISK and folder.use in _LARGE:
            problem = f"{folder.path} ({folder.use}) has {folder.space.free / GB:.1f} GB of disk space left"
            yield Fault("disk", False, problem, _REMEDY[folder.use])


_LARGE = ("working folder", "models")
_REMEDY = {
    "working folder": "name another folder with --out",
    "home": "set HOME to a folder of your own",
    "models": "set XDG_DATA_HOME to a folder with space, which `vinfinity models fetch` can write to",
    "temporary files": "set TMPDIR to a folder that can be written to",
}


def check_files(facts: Facts) -> Iterator[Fault]:
    """Video libraries and models."""
    video, models = facts.video, facts.models
    if isinstance(video, Failed):
        remedy = "install it again: pip install --force-reinstall av"
        yield Fault("pyav", True, f"PyAV cannot be used: {video.reason}", remedy)
    elif NEEDED not in video.encoders:
        problem = f"this build of PyAV ({video.pyav}) has no {NEEDED}, which encodes the MP4"
        yield Fault("h264", True, problem, "install PyAV from PyPI: pip install --force-reinstall av")
    if isinstance(models, Failed):
        yield Fault(
            "models", True, f"the models cannot be listed: {models.reason}", "install vinfinity again"
        )
        return
    if not models:
        yield Fault("models", True, "the embedded model is missing", "install vinfinity again")
    for model in models:
        if model.fault:
            yield Fault("model", False, *_problem_and_remedy(model.fault))


def check_looks(facts: Facts) -> Iterator[Fault]:
    """Look that failed, and that no other check reports."""
    for name in ("system", "processor", "memory", "shared_memory", "folders", "network"):
        found = getattr(facts, name)
        if isinstance(found, Failed):
            problem = f"{name.replace('_', ' ')}: cannot be read ({found.reason})"
            yield Fault("unknown", False, problem, "look at it yourself")


CHECKS: tuple[Callable[[Facts], Iterator[Fault]], ...] = (
    check_launcher,
    check_driver,
    check_engine,
    check_gpus,
    check_transports,
    check_variables,
    check_threads,
    check_host,
    check_files,
    check_looks,
)
