"""The model's guided prediction for this rank's frames at a timestep: contexts, guidance branches, finite values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.guidance import guidance_features, guide
from vinfinity.errors import NotFiniteError
from vinfinity.job import Job
from vinfinity.models.finite import first_not_finite
from vinfinity.models.offload import DeviceStore, HostStore
from vinfinity.models.unet3d.unet import DeepFeatures, UNet, compile_blocks
from vinfinity.parallel.context import Scopes, TemporalContext, temporal_context
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.pulse import Pulse
from vinfinity.parallel.shards import anchor_frames
from vinfinity.parallel.teams import Team, branch_swap


def contexts(
    job: Job, team: Team, exchange: FrameExchange, *, stretch: int, device: torch.device
) -> Callable[[int], TemporalContext]:
    """The temporal context in force at a training timestep: one for each phase of the schedule, made when first used.

    A video no longer than the model's trained clip takes plain attention, so that it is the base model's own. Where a
    part of a video is computed, frames are as far from each other as they are in that part.
    """
    attention, frames = job.config.attention, job.footage.frames
    anchors = tuple(frames.index(anchor) for anchor in anchor_frames(job.config.frames, attention.anchors))
    made: dict[Scopes | None, TemporalContext] = {}

    def at(t: int) -> TemporalContext:
        scopes = None
        if job.config.frames > job.trained_frames:
            phase = attention.phase(t)
            scopes = Scopes(
                local=attention.local,
                anchors=anchors,
                local_bias=phase.local,
                anchor_bias=phase.anchors,
                entropy_scaling=attention.entropy_scaling,
            )
        if scopes not in made:
            made[scopes] = temporal_context(
                exchange,
                team.shards,
                team.member,
                scopes,
                trained_frames=job.trained_frames,
                norm=attention.norm,
                chunk_bytes=stretch,
                device=device,
            )
        return made[scopes]

    return at


def predictor(
    job: Job,
    unet: UNet,
    text: Tensor,
    team: Team,
    exchange: FrameExchange,
    pulse: Pulse[Any],
    *,
    execution: Execution,
    dtype: torch.dtype,
) -> Callable[[Tensor, int], Tensor]:
    """The model's guided prediction for latents x (1, c, f, h, w) at a training timestep, in fp32.

    text: (branches, t, c). pulse: tells the other ranks, once a call, whether the prediction is finite here.
    It raises NotFiniteError, on every rank, where any rank's prediction holds values that are no numbers.
    """
    device, reuse = text.device, job.config.reuse

    def one(value: float) -> Tensor:
        return torch.full((1,), value, dtype=torch.float32, device=device)

    if job.config.compile:
        compile_blocks(unet)
    fps = one(job.config.fps_condition or job.fps) if unet.config.fps_cond else None
    width = unet.config.time_cond_proj_dim
    condition = None if width is None else guidance_features(job.guidance, width).to(device)
    store = HostStore(device) if execution.skips == "host" else DeviceStore()
    context = contexts(job, team, exchange, stretch=execution.stretch, device=device)
    swap = None
    if team.branch is not None:
        text, swap = text[team.branch : team.branch + 1], branch_swap(team, exchange.counters)
    calls = [(some, DeepFeatures(reuse.depth)) for some in text.split(execution.branches)]

    def ask(x: Tensor, t: int, *, renew: bool) -> Tensor:
        predictions = []
        for some, deep in calls:
            deep.renew = renew
            predictions.append(
                unet(
                    x.to(dtype).expand(len(some), *x.shape[1:]),
                    one(t),
                    some,
                    context(t),
                    fps=fps,
                    condition=condition,
                    store=store,
                    deep=deep if reuse.interval > 1 else None,
                )
            )
        return torch.cat(predictions)

    def predict(x: Tensor, t: int) -> Tensor:
        step = job.sampler.timesteps.index(t)
        renew = step % reuse.interval == 0
        predictions = ask(x, t, renew=renew)
        # all ranks agree on whether to go on: one that stopped would leave the others waiting
        if not pulse.all_finite(bool(predictions.isfinite().all())):
            with first_not_finite(unet) as names:
                ask(x, t, renew=renew)
            layer = next((found[0] for found in pulse.ranks.collect(names) if found), "conv_out")
            raise not_finite(f"step {step + 1} (timestep {t})", f"the UNet's {layer}", dtype)
        if swap is not None:
            theirs = swap(predictions)
            predictions = torch.cat([predictions, theirs] if team.branch == 0 else [theirs, predictions])
        return guide(predictions.float(), job.guidance)

    return predict


def not_finite(where: str, what: str, dtype: torch.dtype) -> NotFiniteError:
    """The error for values that are no numbers."""
    name = str(dtype).removeprefix("torch.")
    half = "try dtype=bf16, or dtype=fp32" if dtype == torch.float16 else "try dtype=fp32"
    remedy = "look at the weights, the noise and the LoRAs" if dtype == torch.float32 else half
    return NotFiniteError(f"{where}: {what} came out as no numbers in {name}; {remedy}")
