"""Small things that the training scripts share: averages, checkpoints, logs, pid files, pictures."""

import json
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import world
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

WORK = Path("build/mini")
Array = NDArray[Any]
Job, Made = TypeVar("Job"), TypeVar("Made")


def computing_type(device: str) -> torch.dtype:
    """bfloat16 where the device has instructions for it: a CPU without them is over ten times slower in it."""
    fast = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: str = "cpu") -> torch.autocast:
    """Compute in `computing_type(device)`."""
    return torch.autocast(device, torch.bfloat16, enabled=computing_type(device) == torch.bfloat16)


def render_all(
    jobs: Iterable[tuple[world.Scene, Array]], *, workers: int, height: int = world.HEIGHT
) -> Iterator[world.Clip]:
    """Clips of (scene, times), in order, rendered in `workers` processes; in this one if 0."""
    return render_in_order(jobs, render=partial(_render, height=height), workers=workers)


def render_in_order(jobs: Iterable[Job], *, render: Callable[[Job], Made], workers: int) -> Iterator[Made]:
    """Yield what `render` makes of each job, in order. In `workers` processes some are made ahead of their use; with 0
    workers, each is made in this process when it is asked for."""
    if workers == 0:
        yield from map(render, jobs)
        return
    # workers start afresh: a fork would copy threads and a CUDA context
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        waiting: deque[AsyncResult[Made]] = deque()
        for job in jobs:
            waiting.append(pool.apply_async(render, (job,)))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()


def _render(job: tuple[world.Scene, Array], *, height: int) -> world.Clip:
    scene, times = job
    return world.render(scene, times, height=height)


class Average:
    """Exponential moving average of a module's parameters, with a warm-up of the decay."""

    def __init__(self, modules: Iterable[nn.Module], *, decay: float) -> None:
        self.parameters = [p for module in modules for p in module.parameters()]
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the present parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the present parameters; call it again to undo."""
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            present = parameter.detach().clone()
            parameter.copy_(shadow)
            shadow.copy_(present)


def cosine(progress: float, *, floor: float) -> float:
    """Cosine decay from 1 to `floor` as progress goes from 0 to 1."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


@dataclass
class Log:
    """Curves as JSON lines, and the same on the screen."""

    path: Path
    started: float = field(default_factory=time.time)

    def write(self, **values: Any) -> None:
        """Append one line."""
        line = {"time": round(time.time() - self.started, 1)} | {
            key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(" ".join(f"{key} {value}" for key, value in line.items()), flush=True)


class Threads:
    """Chooses the number of threads by trial: on a machine that others use too, fewer are often faster.

    Every `period` steps, or less often if there are many choices, it tries 1, 2, 4, ... and `most` threads for `trial`
    steps each and keeps the number whose median step was fastest. At most a tenth of the steps are trials.
    """

    def __init__(self, most: int, *, period: int = 160, trial: int = 6) -> None:
        self.choices = sorted({most, *(2**power for power in range(most.bit_length()))})
        self.period, self.trial = max(period, 10 * trial * len(self.choices)), trial
        self.times: dict[int, list[float]] = {}
        self.started: float | None = None
        self.count = 0

    def step(self) -> None:
        """Call at the beginning of every step."""
        now, place = time.time(), self.count % self.period
        trials = self.trial * len(self.choices)
        if self.started is not None and 0 < place <= trials:
            self.times.setdefault(torch.get_num_threads(), []).append(now - self.started)
        if len(self.choices) > 1:
            if place < trials and place % self.trial == 0:
                torch.set_num_threads(self.choices[place // self.trial])
            elif place == trials:
                torch.set_num_threads(min(self.times, key=lambda n: float(np.median(self.times[n]))))
                self.times.clear()
        self.started, self.count = now, self.count + 1


def announce(work: Path) -> None:
    """Write the id of this process to train.pid, for whoever must pause the training."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "train.pid").write_text(f"{os.getpid()}\n")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def picture_height(vae: AutoencoderKL) -> int:
    """Return the height of the pictures whose latents the denoiser takes: 80 at 8 pixels a latent cell, 160 at 16."""
    return world.HEIGHT // 8 * 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def encode_clips(vae: AutoencoderKL, clips: Sequence[world.Clip]) -> Tensor:
    """Latents of clips of equal length, (b, 4, f, h, w), on the autoencoder's device."""
    latents = []
    for clip in clips:
        with autocast(vae.device.type):
            z = vae.encode(to_unit(clip).to(vae.device)).latent_dist.mode()
        latents.append(z.float() * vae.config.scaling_factor)
    return torch.stack(latents).transpose(1, 2).contiguous()


def to_unit(frames: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 frames (f, h, w, 3) to floats (f, 3, h, w) in [-1, 1]."""
    frames = torch.as_tensor(frames)
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(pictures: Tensor) -> NDArray[np.uint8]:
    """Floats (f, 3, h, w) in [-1, 1] to uint8 frames (f, h, w, 3)."""
    values = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
    return values.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture (b, 3, h, w) in [-1, 1]; returns (b,)."""
    return -10 * torch.log10(((a - b) / 2).square().mean((1, 2, 3)))


def channels_last(module: nn.Module) -> None:
    """Lay out the weights of 2-D convolutions channels-last, which is faster on CPUs."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.weight.data = child.weight.data.contiguous(memory_format=torch.channels_last)
