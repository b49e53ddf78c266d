"""The doctor's findings as rows of text, and as JSON."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vinfinity.doctor.facts import Facts
from vinfinity.doctor.faults import GB, Fault
from vinfinity.machine.engine import Engine, Gpu, Use
from vinfinity.machine.host import Space, shortened
from vinfinity.machine.nvidia import Link, Nvidia
from vinfinity.machine.probe import Failed, known, plain
from vinfinity.parallel.place import Place

Rows = list[tuple[str, str]]


def here(facts: Facts) -> Rows:
    """Return what is on this machine."""
    return [
        ("vinfinity", f"{facts.version} in {facts.package}"),
        ("system", _system(facts)),
        ("processor", _processor(facts)),
        ("memory", _memory(facts)),
        ("disk", _disk(facts)),
        *_gpu_rows(facts),
        ("torch", _torch(facts.engine)),
        ("video", _video(facts)),
        ("models", _models(facts)),
        ("network", _network(facts)),
        ("launcher", _launcher(facts.place)),
        ("variables", _variables(facts.variables)),
    ]


def used(facts: Facts) -> Rows:
    """Return what a run would use."""
    engine = facts.engine
    if isinstance(engine, Failed):
        return [("device", "not known, since torch cannot be used")]
    use = engine.use
    if isinstance(use, Failed):
        return [("device", _failed(use))]
    if use.refused:
        return [("device", "none: see below")]
    ranks = facts.place.size if isinstance(facts.place, Place) else facts.gpus or 1
    rows = [
        ("device", _device(use, engine, facts)),
        ("dtype", use.dtype),
        ("ranks", f"{ranks}{_more_ranks(ranks, engine, facts)}"),
        ("attention", _attention(use)),
    ]
    if use.device == "cuda":
        rows.append(("allocator", use.allocator or "torch's default"))
    else:
        rows.append(("threads", f"{use.threads} for each rank" if ranks > 1 else str(use.threads)))
    return rows


def wrong(faults: Sequence[Fault]) -> Rows:
    """Return what is wrong, one line each."""
    return [("error" if fault.stops else "warning", fault.line) for fault in faults]


def as_json(facts: Facts, faults: Sequence[Fault]) -> dict[str, Any]:
    """Everything that was found, for programs. A look that failed is an object with the entry `failed`."""
    found = {field.name: plain(getattr(facts, field.name)) for field in dataclasses.fields(facts)}
    engine = known(facts.engine)
    use = found["engine"].pop("use") if engine is not None else {"failed": "torch cannot be used"}
    asked = {"gpus": found.pop("gpus"), "device": found.pop("device")}
    ranks = facts.place.size if isinstance(facts.place, Place) else facts.gpus or 1
    return {
        "here": found,
        "asked": asked,
        "used": {**use, "ranks": ranks},
        "wrong": [dataclasses.asdict(fault) for fault in faults],
        "stops": any(fault.stops for fault in faults),
    }


# ---- what is here ----


def _failed(found: Failed) -> str:
    return f"not known: {found.reason}"


def _system(facts: Facts) -> str:
    system = facts.system
    if isinstance(system, Failed):
        return _failed(system)
    inside = f", in {system.container}" if system.container else ""
    return f"{system.system}, kernel {system.kernel}, Python {system.python}, host {system.host}{inside}"


def _processor(facts: Facts) -> str:
    processor = facts.processor
    if isinstance(processor, Failed):
        return _failed(processor)
    vectors = f", {processor.vectors}" if processor.vectors else ""
    return f"{processor.name}{vectors}, {processor.usable} of {processor.cores} cores for this process"


def _memory(facts: Facts) -> str:
    memory, shared = facts.memory, facts.shared_memory
    text = (
        _failed(memory)
        if isinstance(memory, Failed)
        else f"{_gb(memory.free)} of {_gb(memory.total)} GB free"
    )
    if isinstance(shared, Space):
        text += f"; /dev/shm {_gb(shared.free)} of {_gb(shared.total)} GB free"
    elif shared is None:
        text += "; no /dev/shm"
    return text


def _disk(facts: Facts) -> str:
    folders = facts.folders
    if isinstance(folders, Failed):
        return _failed(folders)
    by_space: dict[str, list[str]] = {}
    for folder in folders:
        space = "not known" if isinstance(folder.space, Failed) else f"{_gb(folder.space.free)} GB free"
        name = f"{folder.path} ({folder.use}{'' if folder.writable else ', read-only'})"
        by_space.setdefault(space, []).append(name)
    return "; ".join(f"{space}: {', '.join(names)}" for space, names in by_space.items())


def _gpu_rows(facts: Facts) -> Rows:
    """Return the GPUs that torch sees, else those of the driver; the driver; the links."""
    engine, nvidia = known(facts.engine), facts.nvidia
    rows: Rows = []
    if engine is not None and engine.gpus:
        kinds = Counter((gpu.name, gpu.capability, round(gpu.memory / GB)) for gpu in engine.gpus)
        for (name, capability, size), count in kinds.items():
            same = [gpu for gpu in engine.gpus if (gpu.name, gpu.capability) == (name, capability)]
            rows.append(
                (
                    "GPUs",
                    f"{count} x {name}, {size} GB{_free(same)}, compute capability {capability}{_pcie(facts)}",
                )
            )
    elif isinstance(nvidia, Nvidia) and nvidia.cards:
        names = Counter(card.name for card in nvidia.cards)
        rows = [("GPUs", f"{count} x {name}; torch sees none of them") for name, count in names.items()]
    else:
        rows = [("GPUs", "none")]
    if isinstance(nvidia, Failed):
        rows.append(("driver", _failed(nvidia)))
    elif nvidia is not None:
        cuda = f", for CUDA up to {nvidia.cuda}" if nvidia.cuda else ""
        nothing = "; no GPU is passed on to this process" if not nvidia.usable else ""
        rows.append(("driver", f"{nvidia.driver}{cuda}{nothing}" if nvidia.driver else "not loaded"))
        if nvidia.links:
            rows.append(("links", _links(nvidia.links)))
    return rows


def _free(gpus: Sequence[Gpu]) -> str:
    free = [gpu.free for gpu in gpus if gpu.free is not None]
    if not free:
        return ""
    least, most = _gb(min(free)), _gb(max(free))
    return f", {least} GB free" if least == most else f", {least} to {most} GB free"


def _pcie(facts: Facts) -> str:
    nvidia = known(facts.nvidia)
    kinds = sorted({card.pcie for card in nvidia.cards if card.pcie}) if nvidia is not None else []
    return f", {' or '.join(kinds)}" if kinds else ""


def _links(links: Sequence[Link]) -> str:
    """Return the kinds of links, each with its pairs of GPUs."""
    kinds: dict[str, list[str]] = {}
    for link in links:
        kinds.setdefault(link.kind, []).append(f"{link.first}-{link.second}")
    if len(kinds) == 1:
        return f"{links[0].kind} between all pairs"
    return "; ".join(f"{kind} {shortened(pairs, most=6)}" for kind, pairs in kinds.items())


def _torch(engine: Engine | Failed) -> str:
    if isinstance(engine, Failed):
        return _failed(engine)
    platform = (
        f"ROCm {engine.versions.rocm}" if engine.versions.rocm else f"CUDA {engine.versions.cuda or 'none'}"
    )
    backends = engine.backends
    parts = [
        engine.versions.torch,
        platform,
        f"cuDNN {engine.versions.cudnn or 'none'}",
        f"NCCL {engine.versions.nccl or 'none'}",
        f"Triton {engine.versions.triton or 'none'}",
        f"backends {_failed(backends) if isinstance(backends, Failed) else ' '.join(backends) or 'none'}",
    ]
    return ", ".join(parts)


def _video(facts: Facts) -> str:
    video = facts.video
    if isinstance(video, Failed):
        return _failed(video)
    return (
        f"PyAV {video.pyav}, FFmpeg {video.ffmpeg or 'unknown'}; {', '.join(video.encoders) or 'no encoders'}"
    )


def _models(facts: Facts) -> str:
    models = facts.models
    if isinstance(models, Failed):
        return _failed(models)
    names = [f"{model.name}{' (damaged)' if model.fault else ''}" for model in models]
    return shortened(names, most=8) if names else "none"


def _network(facts: Facts) -> str:
    network = facts.network
    if isinstance(network, Failed):
        return _failed(network)
    address = network.address or "no address"
    return f"{network.host} is {address}; interfaces {shortened(network.interfaces, most=6)}"


def _launcher(place: Place | Failed | None) -> str:
    if isinstance(place, Failed):
        return _failed(place)
    if place is None:
        return "none"
    local = f"local {place.local_rank} of {place.local_size}"
    return f"{place.launcher}: rank {place.rank} of {place.size}, {local}, at {place.address}:{place.port}"


def _variables(variables: Mapping[str, str]) -> str:
    return shortened((f"{name}={value}" for name, value in variables.items()), most=12) or "none of note"


# ---- what is used ----


def _device(use: Use, engine: Engine, facts: Facts) -> str:
    if use.device != "cuda":
        return use.device
    ranks = facts.place.local_size if isinstance(facts.place, Place) else facts.gpus or 1
    if ranks == 1:
        return f"cuda:0, {engine.gpus[0].name}" if engine.gpus else "cuda:0"
    return f"cuda:0 to cuda:{ranks - 1}"


def _more_ranks(ranks: int, engine: Engine, facts: Facts) -> str:
    """Return a hint for machines with more GPUs than a run would use."""
    if facts.place is None and facts.gpus is None and len(engine.gpus) > ranks:
        return f"; --gpus {len(engine.gpus)} uses all GPUs"
    return ""


def _attention(use: Use) -> str:
    attention = use.attention
    if attention is None or isinstance(attention, Failed):
        return "not known" if attention is None else _failed(attention)
    return f"{attention.temporal} for temporal, {attention.spatial} for spatial attention"


def _gb(size: int) -> str:
    """Return bytes in GB, with one digit below 10."""
    return f"{size / GB:.0f}" if size >= 10 * GB else f"{size / GB:.1f}"
