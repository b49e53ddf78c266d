"""Plans as rows of text and as JSON."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vinfinity.planning.estimate import ASSUMPTIONS, Seconds
from vinfinity.planning.memory import GPU_RESERVE, allocator_overhead, gigabytes
from vinfinity.planning.plan import FEW_STEPS, Plan, seconds_by_gpu
from vinfinity.runs.paths import Destination
from vinfinity.system.progress import duration


def essentials(plan: Plan) -> list[tuple[str, str]]:
    """Return the part of a plan that --dry-run shows, as rows (name, text)."""
    return [row for name, part in plan.passes for row in [*_heading(name, part), *_essentials(part)]]


def _heading(name: str, plan: Plan) -> list[tuple[str, str]]:
    """Return the heading of one of two passes; nothing for a single pass."""
    config = plan.run.config
    return [(name, f"{config.size}, {plan.steps} steps by {plan.run.card.name}")] if name else []


def _essentials(plan: Plan) -> list[tuple[str, str]]:
    memory, run = plan.memory, plan.run
    execution = memory.execution
    skips = "" if run.device == "cpu" else f", skip connections on the {execution.skips}"
    branches = f"{execution.branches} of {run.branches_per_rank} guidance branches at once{skips}"
    on_device, on_host = memory.needs(run.device)
    rows = [
        ("frames", rank_frames(run.frames_per_rank)),
        ("execution", f"{branches}, chunks of {execution.chunk_bytes / 2**20:.0f} MiB"),
    ]
    if run.device == "cuda":
        rows.append(("device memory", f"{gigabytes(on_device)} on each rank{_available(plan.budget.device)}"))
    rows.append(("host memory", f"{gigabytes(on_host)} on rank 0{_available(plan.budget.host)}"))
    return rows


def table(plan: Plan) -> list[tuple[str, ...]]:
    """Return the whole plan as rows (name, text)."""
    return [row for name, part in plan.passes for row in [*_heading(name, part), *_table(part)]]


def _table(plan: Plan) -> list[tuple[str, ...]]:
    run, memory, step = plan.run, plan.memory, plan.memory.step
    card = run.card
    published = (
        ", planned from its published architecture since it is not installed" if card.published else ""
    )
    c, h, w = run.latent_shape
    parts = (
        f"weights {gigabytes(step.weights)}, skip connections {gigabytes(step.skips)}, temporaries"
        f" {gigabytes(step.temporaries)}, exchange {gigabytes(step.exchange)}, sampler {gigabytes(step.state)}"
    )
    extra = (
        f"the largest of these, {allocator_overhead(run.device) - 1:.0%} more for the allocator, and"
        f" {gigabytes(GPU_RESERVE)} for CUDA's libraries"
    )
    host = (
        f"latents {gigabytes(memory.latents)}, loading {gigabytes(memory.loading)}, pictures"
        f" {gigabytes(max(memory.pictures, memory.reading))}, skip connections {gigabytes(step.host)}"
    )
    encoding = "" if memory.encoding is None else f"encoding: {gigabytes(memory.encoding.device)}, "
    free = shutil.disk_usage(_existing_parent(Destination.of(run.config).video)).free
    disk = (
        f"at most {gigabytes(plan.disk_bytes)}, {gigabytes(free)} free: video about {gigabytes(plan.video_bytes)},"
        f" latents {gigabytes(plan.latents_bytes)}, a checkpoint {gigabytes(plan.checkpoint_bytes)}"
    )
    rows: list[tuple[str, ...]] = [
        (
            "video",
            f"{run.config.frames} frames of {run.config.size}, latents 1x{c}x{run.latent_frames}x{h}x{w}",
        ),
        ("model", f"{card.name}, {run.dtype}{published}"),
        *_essentials(plan),
        ("", f"denoising: {parts}"),
        (
            "",
            f"text encoder: {gigabytes(memory.text.device)}, {encoding}decoding: {gigabytes(memory.decoding.device)}",
        ),
        *([("", extra)] if run.device == "cuda" else []),
        ("", f"host: {host}"),
        ("disk", disk),
        ("messages", f"{plan.messages_per_step:,} per step and rank, {gigabytes(plan.bytes_per_step)}"),
        (
            "arithmetic",
            f"{operations(plan.flops_per_step)} per step and rank, {operations(plan.flops)} in total",
        ),
    ]
    if plan.disk_bytes > free:
        rows.append(("warning", f"the disk is too small: {gigabytes(plan.disk_bytes)} will be needed"))
    if plan.fits and (plan.budget.device or plan.budget.host):
        rows.append(("fits", f"yes, on {plan.budget.where}"))
    return rows


def time_table(plan: Plan) -> list[tuple[str, ...]]:
    """Return estimated times on GPUs, as a heading and a row for each GPU."""
    encodes = plan.run.config.starts_from_video
    heading = (
        "GPU",
        "fits",
        "time",
        *(["encoding"] if encodes else []),
        "denoising",
        "exchange",
        "decoding",
        f"distilled, {FEW_STEPS} steps",
    )
    rows = [
        (
            f"{plan.run.ranks} x {name}",
            "yes" if fits else "no",
            duration(seconds.total),
            *([duration(seconds.encoding)] if encodes else []),
            duration(seconds.denoising),
            duration(seconds.exchange),
            duration(seconds.decoding),
            duration(distilled.total),
        )
        for name, (seconds, distilled, fits) in seconds_by_gpu(plan).items()
    ]
    return [heading, *rows]


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as values for JSON: bytes, seconds, floating-point operations."""
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
        "frames_per_rank": run.frames_per_rank,
        "execution": asdict(memory.execution),
        "device_memory": {
            "needed": on_device,
            "available": plan.budget.device,
            "peak": memory.device,
            "allocator": allocator_overhead("cuda"),
            "reserve": GPU_RESERVE,
            **asdict(memory.step),
            "temporaries": memory.step.temporaries,
            "text": memory.text.device,
            "encoding": 0 if memory.encoding is None else memory.encoding.device,
            "decoding": memory.decoding.device,
        },
        "host_memory": {
            "needed": on_host,
            "available": plan.budget.host,
            "process": memory.process,
            "loading": memory.loading,
            "latents": memory.latents,
            "reading": memory.reading,
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
    if plan.first_pass is not None:
        figures["first_pass"] = as_json(plan.first_pass)
    if run.device == "cuda":
        figures["assumed"] = ASSUMPTIONS
        figures["time"] = {
            name: {**_seconds(seconds), "four_steps": _seconds(distilled), "fits": fits}
            for name, (seconds, distilled, fits) in seconds_by_gpu(plan).items()
        }
    return figures


def _seconds(seconds: Seconds) -> Mapping[str, float]:
    return {name: round(value, 3) for name, value in (asdict(seconds) | {"total": seconds.total}).items()}


def operations(count: float) -> str:
    """Return a number of floating-point operations as text."""
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e9:,.1f} GFLOP"


def rank_frames(frames: list[int]) -> str:
    """Return the number of frames of each rank as text, the most first."""
    most, fewest = max(frames), min(frames)
    if most == fewest:
        return f"{most} on each of {len(frames)} ranks" if len(frames) > 1 else f"{most} on one rank"
    return f"{most} on {frames.count(most)} ranks, {fewest} on {frames.count(fewest)}"


def _available(available: int | None) -> str:
    return "" if available is None else f", {gigabytes(available)} available"


def _existing_parent(path: Path) -> Path:
    folder = path.absolute().parent
    while not os.path.exists(folder):
        folder = folder.parent
    return folder
