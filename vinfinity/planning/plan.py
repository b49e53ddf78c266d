"""What a run will take, put together: frames, memory, disk, messages, arithmetic, time."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vinfinity.config import RunConfig
from vinfinity.denoise.samplers import State
from vinfinity.errors import InputError
from vinfinity.parallel.place import find_place
from vinfinity.planning.estimate import ASSUMED, Seconds, exchange_seconds, work_seconds
from vinfinity.planning.fit import Memory, Room, choose, gigabytes, refusal
from vinfinity.planning.machines import GPUS, Gpu, find_gpu, free_on_host
from vinfinity.planning.outline import Outline, outline
from vinfinity.planning.trace import StepWork, trace_work
from vinfinity.runs.paths import Destination
from vinfinity.system.progress import duration
from vinfinity.weights.card import planned_card

MP4_BITS = 0.25  # of a pixel at crf 18: an estimate, what is filmed lies between 0.05 and 0.5
CRF_HALVES = 6  # steps of x264's rate factor that halve the file
FEW_STEPS = 4  # of distilled models


@dataclass(frozen=True)
class Plan:
    """A run on a machine. gpu: its name in the table where it is known. memory: of the execution that fits, of the
    leanest where none does.
    """

    run: Outline
    room: Room
    gpu: str | None
    memory: Memory
    fits: bool
    work: StepWork

    @property
    def steps(self) -> int:
        """Denoising steps of the sampler."""
        return len(self.run.sampler.timesteps)

    @property
    def messages_per_step(self) -> int:
        """That the fullest rank sends."""
        return self.work.messages * (self.run.rank_branches // self.memory.execution.branches)

    @property
    def bytes_per_step(self) -> int:
        """That the fullest rank sends."""
        return self.work.bytes * self.run.rank_branches

    @property
    def flops_per_step(self) -> int:
        """Of the fullest rank."""
        return self.work.work.flops * self.run.rank_branches

    @property
    def flops(self) -> int:
        """Of all ranks in the whole run, decoding included."""
        share = self.run.config.frames / self.run.clip.frames
        steps = self.work.work.flops * self.run.branches * share * self.steps
        return round(steps) + self.decoding_flops

    @property
    def decoding_flops(self) -> int:
        """Of all frames."""
        return round(self.memory.decoding.work.flops * self._decoded_blocks)

    @property
    def _decoded_blocks(self) -> float:
        return self.run.config.frames / self.run.blocks.frames

    @property
    def latents_bytes(self) -> int:
        """Of the file with the latents, in fp32."""
        c, h, w = self.run.latent
        return self.run.config.frames * c * h * w * 4

    @property
    def video_bytes(self) -> int:
        """Of the MP4: an estimate."""
        width, height = self.run.config.resolution
        quality = 2 ** ((18 - self.run.config.video.crf) / CRF_HALVES)
        return round(self.run.config.frames * width * height * MP4_BITS / 8 * quality)

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: the latents, and the estimate of x0 that samplers of several steps keep."""
        with torch.device("meta"):
            x = torch.empty(1)
            kept = self.run.sampler.step(State(step=0, x=x), x, lambda _: x)
        return self.latents_bytes * (1 if kept.clean is None else 2)

    @property
    def disk_bytes(self) -> int:
        """The most that the run takes up: checkpoints while it denoises, then latents, and the MP4 twice at the end."""
        checkpoints = self.run.config.checkpoint
        keep = 0 if checkpoints.every == "never" else checkpoints.keep
        denoising = (keep + (keep > 0)) * self.checkpoint_bytes
        between = keep * self.checkpoint_bytes + self.latents_bytes
        decoding = self.latents_bytes + 2 * self.video_bytes
        saved = self.latents_bytes if self.run.config.save_latents else 0
        return max(denoising, between, decoding) + saved

    def seconds(self, gpu: Gpu, *, few: bool = False) -> Seconds:
        """The time on GPUs of a kind. few: in four steps without the second guidance branch."""
        branches, steps = (1, FEW_STEPS) if few else (self.run.rank_branches, self.steps)
        at_once = min(self.memory.execution.branches, branches)
        half = self.run.dtype != "fp32"
        call = work_seconds(self.work.work, gpu, times=at_once, half=half)
        block = work_seconds(self.memory.decoding.work, gpu, half=False)
        decoders = self.run.ranks if self.run.config.decode.where == "ranks" else 1
        return Seconds(
            denoising=steps * (branches // at_once) * call,
            exchange=steps * exchange_seconds(self.work.bytes * branches, gpu),
            decoding=block * self._decoded_blocks / decoders,
        )

    @cached_property
    def refusal(self) -> InputError | None:
        """Why the run cannot fit, and what would; None where it does."""
        return None if self.fits else refusal(self.run, self.memory, self.room)


def make_plan(config: RunConfig, *, gpu: str | None = None, device_memory: float | None = None) -> Plan:
    """The plan of a run on this machine, or on another. gpu: a name of the table. device_memory: of each device, GB.

    Raises InputError where the settings do not go together.
    """
    place = find_place(os.environ)
    ranks = config.gpus or (place.size if place is not None else 1)
    if ranks > config.frames:
        problem = f"is more than the {config.frames} frames"
        raise InputError("gpus", ranks, f"use {config.frames} ranks at most", problem=problem)
    elsewhere = gpu is not None or device_memory is not None
    found = torch.cuda.device_count()
    on_cpu = config.device == "cpu" or (config.device == "auto" and ranks == 1 and not found)
    if elsewhere and config.device == "cpu":
        given = "--gpu" if gpu is not None else "--device-memory"
        raise InputError(
            given, gpu or device_memory, "leave one of them out", problem="contradicts device=cpu"
        )
    run = outline(
        config, planned_card(config.model), device="cpu" if on_cpu and not elsewhere else "cuda", ranks=ranks
    )
    name = None if gpu is None else find_gpu(gpu)
    room = find_room(run, name, device_memory, local=ranks if place is None else place.local_size)
    memory, fits = choose(run, room)
    return Plan(run=run, room=room, gpu=name, memory=memory, fits=fits, work=trace_work(run.clip))


def find_room(run: Outline, gpu: str | None, device_memory: float | None, *, local: int) -> Room:
    """The memory of each rank: named, or found on this machine. local: ranks that share this node."""
    if device_memory is not None:
        return Room(device=round(device_memory * 1e9), host=None, where=f"{device_memory:g} GB devices")
    if gpu is not None:
        return Room(device=GPUS[gpu].memory, host=None, where=gpu)
    host = free_on_host(sharing=local)
    if run.device == "cpu":
        return Room(device=None, host=host, where="cpu")
    if not torch.cuda.is_available():
        return Room(device=None, host=None, where="GPUs that are not here")
    devices = range(min(local, torch.cuda.device_count()))
    free = min(torch.cuda.mem_get_info(index)[0] for index in devices)
    return Room(device=free, host=host, where=torch.cuda.get_device_name(0))


def machines(plan: Plan) -> dict[str, tuple[Seconds, Seconds, bool]]:
    """For the GPU that is planned for, or each of the table: seconds, those in four steps, and whether the run fits."""
    names = [plan.gpu] if plan.gpu is not None else list(GPUS)
    table = {}
    for name in names:
        gpu = GPUS[name]
        fits = plan.memory.fits(Room(device=gpu.memory, host=None, where=name), plan.run.device)
        if not fits and plan.room.device is None:
            fits = choose(plan.run, Room(device=gpu.memory, host=None, where=name))[1]
        table[name] = (plan.seconds(gpu), plan.seconds(gpu, few=True), fits)
    return table


def essentials(plan: Plan) -> list[tuple[str, str]]:
    """What --dry-run shows of a plan, as rows for people."""
    memory, run = plan.memory, plan.run
    execution = memory.execution
    skips = "" if run.device == "cpu" else f", skip connections on the {execution.skips}"
    carried_out = f"{execution.branches} of {run.rank_branches} guidance branches at once{skips}"
    on_device, on_host = memory.needs(run.device)
    rows = [
        ("frames", frames_of(run.held)),
        ("execution", f"{carried_out}, stretches of {execution.chunk_bytes / 2**20:.0f} MiB"),
    ]
    if run.device == "cuda":
        rows.append(("device memory", f"{gigabytes(on_device)} on each rank{_of(plan.room.device)}"))
    rows.append(("host memory", f"{gigabytes(on_host)} on rank 0{_of(plan.room.host)}"))
    return rows


def table(plan: Plan) -> list[tuple[str, ...]]:
    """The whole plan, as rows for people."""
    run, memory, step = plan.run, plan.memory, plan.memory.step
    card = run.card
    planned = ", planned from its published architecture: it is not here" if card.published else ""
    c, h, w = run.latent
    parts = (
        f"weights {gigabytes(step.weights)}, skip connections {gigabytes(step.skips)}, temporaries"
        f" {gigabytes(step.temporaries)}, exchange {gigabytes(step.exchange)}, sampler {gigabytes(step.state)}"
    )
    phases = f"text {gigabytes(memory.text.device)}, decoding {gigabytes(memory.decoding.device)}"
    host = f"latents {gigabytes(memory.latents)}, loading {gigabytes(memory.loading)}, pictures"
    free = shutil.disk_usage(_existing(Destination.of(run.config).video)).free
    rows: list[tuple[str, ...]] = [
        (
            "video",
            f"{run.config.frames} frames of {run.config.size}, latents 1x{c}x{run.config.frames}x{h}x{w}",
        ),
        ("model", f"{card.name}, {run.dtype}{planned}"),
        *essentials(plan),
        ("", f"denoising: {parts}"),
        ("", f"before and after: {phases}"),
        ("", f"host: {host} {gigabytes(memory.pictures)}, skip connections {gigabytes(step.host)}"),
        (
            "disk",
            f"at most {gigabytes(plan.disk_bytes)}: MP4 about {gigabytes(plan.video_bytes)}, latents "
            f"{gigabytes(plan.latents_bytes)}, a checkpoint {gigabytes(plan.checkpoint_bytes)}; "
            f"{gigabytes(free)} are free",
        ),
        ("messages", f"{plan.messages_per_step:,} a step and rank, {gigabytes(plan.bytes_per_step)}"),
        ("arithmetic", f"{operations(plan.flops_per_step)} a step and rank, {operations(plan.flops)} in all"),
    ]
    if plan.disk_bytes > free:
        rows.append(("warning", f"the disk is too small: {gigabytes(plan.disk_bytes)} will be needed"))
    if plan.fits and (plan.room.device or plan.room.host):
        rows.append(("fits", f"yes, on {plan.room.where}"))
    return rows


def time_table(plan: Plan) -> list[tuple[str, ...]]:
    """Times on GPUs by name, as rows for people."""
    title = (
        "GPU",
        "fits",
        "time",
        "denoising",
        "exchange",
        "decoding",
        f"in {FEW_STEPS} steps, no second branch",
    )
    rows = [
        (
            f"{plan.run.ranks} x {name}",
            "yes" if fits else "no",
            duration(seconds.total),
            duration(seconds.denoising),
            duration(seconds.exchange),
            duration(seconds.decoding),
            duration(few.total),
        )
        for name, (seconds, few, fits) in machines(plan).items()
    ]
    return [title, *rows]


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan in plain values: bytes, seconds, operations."""
    run, memory = plan.run, plan.memory
    on_device, on_host = memory.needs(run.device)
    figures: dict[str, Any] = {
        "model": run.card.name,
        "published_architecture": run.card.published,
        "device": run.device,
        "dtype": run.dtype,
        "size": run.config.size,
        "frames": run.config.frames,
        "ranks": run.ranks,
        "frames_per_rank": run.held,
        "execution": asdict(memory.execution),
        "device_memory": {
            "needed": on_device,
            "available": plan.room.device,
            "peak": memory.device,
            **asdict(memory.step),
            "temporaries": memory.step.temporaries,
            "text": memory.text.device,
            "decoding": memory.decoding.device,
        },
        "host_memory": {
            "needed": on_host,
            "available": plan.room.host,
            "process": memory.process,
            "loading": memory.loading,
            "latents": memory.latents,
            "pictures": memory.pictures,
            "skips": memory.step.host,
        },
        "disk": {
            "video_estimate": plan.video_bytes,
            "latents": plan.latents_bytes,
            "checkpoint": plan.checkpoint_bytes,
            "most": plan.disk_bytes,
        },
        "per_step": {
            "messages": plan.messages_per_step,
            "bytes": plan.bytes_per_step,
            "flops": plan.flops_per_step,
        },
        "steps": plan.steps,
        "flops": plan.flops,
        "fits": plan.fits,
        "nearest": None if plan.refusal is None else plan.refusal.message,
    }
    if run.device == "cuda":
        figures["assumed"] = ASSUMED
        figures["time"] = {
            name: {**_seconds(seconds), "four_steps": _seconds(few), "fits": fits}
            for name, (seconds, few, fits) in machines(plan).items()
        }
    return figures


def _seconds(seconds: Seconds) -> Mapping[str, float]:
    return {name: round(value, 3) for name, value in (asdict(seconds) | {"total": seconds.total}).items()}


def operations(count: float) -> str:
    """Floating-point operations for people."""
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e9:,.1f} GFLOP"


def frames_of(held: list[int]) -> str:
    """Frames by rank for people, the fullest first."""
    most, fewest = max(held), min(held)
    if most == fewest:
        return f"{most} on each of {len(held)} ranks" if len(held) > 1 else f"{most} on one rank"
    return f"{most} on {held.count(most)} ranks, {fewest} on {held.count(fewest)}"


def _of(available: int | None) -> str:
    return "" if available is None else f", of {gigabytes(available)}"


def _existing(path: Path) -> Path:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder
