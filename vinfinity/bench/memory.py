"""What a denoising step holds at most: traced on tensors without data, and compared with what a process holds."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.samplers import DPMSolverPP
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.trace import Clip, StepMemory, trace_step, unet_call

MIB = 2**20


@dataclass(frozen=True)
class Footprint:
    """Bytes that one rank holds at most during a denoising step. frames: its own."""

    ranks: int
    frames: int
    execution: Execution
    memory: StepMemory


def trace_footprint(
    config: UNetConfig,
    *,
    ranks: int,
    frames: int,
    latent: tuple[int, int],
    scopes: Scopes | None,
    execution: Execution,
    branches: int = 2,
    dtype: torch.dtype = torch.float16,
) -> Footprint:
    """One denoising step of an inner rank with SDE-DPM-Solver++. frames: per rank. latent: (h, w). branches: of
    guidance, `execution.branches` of them at once.
    """
    clip = Clip(
        unet=config,
        shards=FrameShards(frames * ranks, ranks),
        rank=ranks // 2,
        latent=latent,
        scopes=scopes,
        dtype=dtype,
    )
    sampler = DPMSolverPP(SchedulerConfig(), 30, stochastic=True)
    memory = trace_step(clip, execution, sampler, branches=branches)
    return Footprint(ranks=ranks, frames=frames, execution=execution, memory=memory)


@dataclass(frozen=True)
class Check:
    """A UNet call on the CPU: bytes that were traced, and those by which fresh processes really grew at most.

    resident: where malloc gives freed blocks back at once. kept: where it does as it likes, and keeps some.
    """

    frames: int
    latent: tuple[int, int]
    traced: int
    resident: int
    kept: int

    @property
    def ratio(self) -> float:
        return self.traced / self.resident


LEAN = Execution(branches=1, skips="device", chunk_bytes=8 * MIB)
SMALL = UNetConfig(
    block_out_channels=(64, 128),
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    layers_per_block=1,
    attention_head_dim=16,
    norm_num_groups=16,
    cross_attention_dim=64,
)


def check_footprint(*, frames: int, latent: tuple[int, int]) -> Check:
    """Traces a UNet call of a small network in fp32, and makes it in processes of their own. latent: (h, w)."""
    memory = trace_step(_small_clip(frames, latent), LEAN, DPMSolverPP(SchedulerConfig(), 30), branches=1)
    resident, kept = (
        _in_fresh_process(f"grown({frames}, {latent})", settings)
        for settings in ({"MALLOC_MMAP_THRESHOLD_": "65536"}, {})
    )
    return Check(
        frames=frames, latent=latent, traced=memory.working - memory.state, resident=resident, kept=kept
    )


def _small_clip(frames: int, latent: tuple[int, int]) -> Clip:
    return Clip(
        unet=SMALL,
        shards=FrameShards(frames),
        rank=0,
        latent=latent,
        scopes=Scopes(anchor_bias=10.0),
        dtype=torch.float32,
    )


def _in_fresh_process(call: str, settings: Mapping[str, str]) -> int:
    """What a function of this module returns in a Python of its own. settings: for its environment."""
    program = f"import {__name__} as here; print(here.{call})"
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True
    )
    return int(done.stdout)


def grown(frames: int, latent: tuple[int, int]) -> int:
    """Bytes by which this process's resident memory rises at most during the UNet call of a check, made with data."""
    torch.set_num_threads(1)
    unet = UNet(SMALL).eval().requires_grad_(False)
    few, clip = _small_clip(2, latent), _small_clip(frames, latent)
    with torch.inference_mode():
        unet_call(few, LEAN, unet=unet).run(torch.zeros(1, 4, 2, *latent))  # what is made once, is made here
        call = unet_call(clip, LEAN, unet=unet)
        x = torch.zeros(1, 4, frames, *latent)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew from here
        before = _status("VmRSS")
        call.run(x)
        return _status("VmHWM") - before


def _status(entry: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {entry}")


def footprint_table(footprints: Sequence[Footprint]) -> list[tuple[str, ...]]:
    """Rows for people; the slope is that from the row before, where the step is carried out alike."""
    title = (
        "ranks x frames",
        "skips",
        "weights",
        "skip connections",
        "temporaries",
        "together",
        "on the host",
        "per further frame",
    )
    rows: list[tuple[str, ...]] = [title]
    for i, one in enumerate(footprints):
        memory, slope = one.memory, ""
        if i and one.execution == footprints[i - 1].execution and one.frames != footprints[i - 1].frames:
            before = footprints[i - 1]
            more = (memory.working - before.memory.working) / (one.frames - before.frames)
            slope = f"{more / 1e6:.2f} MB"
        sizes = (memory.weights, memory.skips, memory.temporaries, memory.device, memory.host)
        rows.append(
            (
                f"{one.ranks} x {one.frames}",
                one.execution.skips,
                *(f"{size / 1e9:.2f} GB" for size in sizes),
                slope,
            )
        )
    return rows


def check_table(check: Check) -> list[tuple[str, str]]:
    """Rows for people."""
    h, w = check.latent
    return [
        ("a small UNet, fp32", f"{check.frames} frames of {h}x{w} latents on the CPU"),
        ("traced", f"{check.traced / 1e6:.1f} MB"),
        ("resident", f"{check.resident / 1e6:.1f} MB; {check.kept / 1e6:.1f} MB with what malloc keeps"),
        ("ratio", f"{check.ratio:.3f}"),
    ]


def write_json(path: Path, footprints: Sequence[Footprint], check: Check | None) -> None:
    """The figures as JSON."""
    figures: dict[str, object] = {"traced": [asdict(one) for one in footprints]}
    if check is not None:
        figures["check"] = asdict(check) | {"ratio": check.ratio}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
