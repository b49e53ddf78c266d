"""Peak memory of a denoising step: traced on meta tensors, and compared with real processes."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vinfinity.denoise.execution import MIB, Execution
from vinfinity.denoise.samplers import DPMSolverPP
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.trace import TIMESTEP, CallShape, StepMemory, network_call, trace_step

SMALL_CHUNKS = Execution(branches=1, skips="device", chunk_bytes=8 * MIB)
SMALL_UNET = UNetConfig(
    block_out_channels=(64, 128),
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    layers_per_block=1,
    attention_head_dim=16,
    norm_num_groups=16,
    cross_attention_dim=64,
)


@dataclass(frozen=True)
class Footprint:
    """Peak memory of one rank during a denoising step, in bytes. frames: the number of frames on each rank."""

    ranks: int
    frames: int
    execution: Execution
    memory: StepMemory


def trace_footprint(shape: CallShape, execution: Execution, *, branches: int = 2) -> Footprint:
    """Trace a denoising step with SDE-DPM-Solver++. branches: guidance branches, in passes of `execution.branches`."""
    sampler = DPMSolverPP(SchedulerConfig(), 30, stochastic=True)
    memory = trace_step(shape, execution, sampler, branches=branches)
    return Footprint(ranks=shape.shards.ranks, frames=shape.frames, execution=execution, memory=memory)


@dataclass(frozen=True)
class ProcessCheck:
    """Bytes of a UNet call on the CPU: as traced, and as the peak growth of fresh processes.

    resident: with a malloc that returns freed blocks to the system immediately. kept: with malloc's default settings.
    """

    frames: int
    latent: tuple[int, int]
    traced: int
    resident: int
    kept: int

    @property
    def ratio(self) -> float:
        return self.traced / self.resident


def check_footprint(*, frames: int, latent: tuple[int, int]) -> ProcessCheck:
    """Traces a UNet call of a small network in fp32, and runs it in processes of its own. latent: (h, w)."""
    sampler = DPMSolverPP(SchedulerConfig(), 30)
    memory = trace_step(_small_call(frames, latent), SMALL_CHUNKS, sampler, branches=1)
    resident, kept = (
        _in_fresh_process(f"process_growth({frames}, {latent})", settings)
        for settings in ({"MALLOC_MMAP_THRESHOLD_": "65536"}, {})
    )
    return ProcessCheck(
        frames=frames, latent=latent, traced=memory.working - memory.state, resident=resident, kept=kept
    )


def _small_call(frames: int, latent: tuple[int, int]) -> CallShape:
    return CallShape(
        family=UNET3D,
        config=SMALL_UNET,
        shards=FrameShards(frames),
        rank=0,
        latent_size=latent,
        scopes=Scopes(anchor_bias=10.0),
        dtype=torch.float32,
    )


def _in_fresh_process(call: str, environment: Mapping[str, str]) -> int:
    """Return the result of a function of this module in a new Python process. environment: additional variables."""
    program = f"import {__name__} as module; print(module.{call})"
    variables = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=variables, stdout=subprocess.PIPE, check=True)
    return int(done.stdout)


def process_growth(frames: int, latent: tuple[int, int]) -> int:
    """Return the bytes by which this process's resident memory grows at most during the UNet call, on real tensors."""
    torch.set_num_threads(1)
    unet = UNet(SMALL_UNET).eval().requires_grad_(False)
    warm_up, shape = _small_call(2, latent), _small_call(frames, latent)
    with torch.inference_mode():
        # everything that is created once is created here
        call = network_call(warm_up, SMALL_CHUNKS, warm_up.traced_exchange(), network=unet)
        call(torch.zeros(warm_up.latents), TIMESTEP)
        call = network_call(shape, SMALL_CHUNKS, shape.traced_exchange(), network=unet)
        x = torch.zeros(shape.latents)
        # resets the peak
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        call(x, TIMESTEP)
        return _status("VmHWM") - before


def _status(entry: str) -> int:
    """Return an entry of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {entry}")
