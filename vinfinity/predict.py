"""The model's guided prediction for this rank's frames at a timestep: contexts, guidance branches, finite values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vinfinity.errors import NotFiniteError
from vinfinity.job import Job
from vinfinity.models.finite import first_not_finite
from vinfinity.models.unet import UNet
from vinfinity.parallel.context import Scopes, TemporalContext, temporal_context
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.pulse import Pulse
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards
from vinfinity.sampling.guidance import guidance_features, guide

SHORT = 32  # frames of a rank that both guidance branches take at once


def contexts(
    job: Job, shards: FrameShards, ranks: Ranks, exchange: FrameExchange
) -> Callable[[int], TemporalContext]:
    """The temporal context in force at a training timestep: one for each phase of the schedule, made when first used.

    A video no longer than the model's trained clip takes plain attention, so that it is the base model's own.
    """
    attention = job.config.attention
    made: dict[Scopes | None, TemporalContext] = {}

    def at(t: int) -> TemporalContext:
        scopes = None
        if shards.frames > job.trained_frames:
            phase = attention.phase(t)
            scopes = Scopes(
                local=attention.local,
                anchors=attention.anchors,
                local_bias=phase.local,
                anchor_bias=phase.anchors,
                entropy_scaling=attention.entropy_scaling,
            )
        if scopes not in made:
            made[scopes] = temporal_context(
                exchange,
                shards,
                ranks.rank,
                scopes,
                trained_frames=job.trained_frames,
                norm=attention.norm,
                device=ranks.device,
            )
        return made[scopes]

    return at


def predictor(
    job: Job,
    unet: UNet,
    text: Tensor,
    shards: FrameShards,
    context: Callable[[int], TemporalContext],
    pulse: Pulse[Any],
    *,
    dtype: torch.dtype,
) -> Callable[[Tensor, int], Tensor]:
    """The model's guided prediction for latents x (1, c, f, h, w) at a training timestep, in fp32.

    pulse: tells the other ranks, once a call, whether the prediction is finite here.
    It raises NotFiniteError, on every rank, where any rank's prediction holds values that are no numbers.
    """

    def one(value: float) -> Tensor:
        return torch.full((1,), value, dtype=torch.float32, device=text.device)

    fps = one(job.config.fps_condition or job.fps) if unet.config.fps_cond else None
    # Both guidance branches at once keep a device busy with short clips; long ones would take twice the memory.
    # All ranks must choose alike, whatever they hold.
    at_once = text.shape[0] if -(-shards.frames // shards.ranks) <= SHORT else 1
    width = unet.config.time_cond_proj_dim
    condition = None if width is None else guidance_features(job.guidance, width).to(text.device)

    def ask(x: Tensor, t: int) -> Tensor:
        branches = [
            unet(
                x.to(dtype).expand(at_once, *x.shape[1:]),
                one(t),
                some,
                context(t),
                fps=fps,
                condition=condition,
            )
            for some in text.split(at_once)
        ]
        return torch.cat(branches)

    def predict(x: Tensor, t: int) -> Tensor:
        predictions = ask(x, t)
        # all ranks agree on whether to go on: one that stopped would leave the others waiting
        if not pulse.all_finite(bool(predictions.isfinite().all())):
            with first_not_finite(unet) as names:
                ask(x, t)
            layer = next((found[0] for found in pulse.ranks.collect(names) if found), "conv_out")
            step = job.sampler.timesteps.index(t) + 1
            raise not_finite(f"step {step} (timestep {t})", f"the UNet's {layer}", dtype)
        return guide(predictions.float(), job.guidance)

    return predict


def not_finite(where: str, what: str, dtype: torch.dtype) -> NotFiniteError:
    """The error for values that are no numbers."""
    name = str(dtype).removeprefix("torch.")
    half = "try dtype=bf16, or dtype=fp32" if dtype == torch.float16 else "try dtype=fp32"
    remedy = "look at the weights, the noise and the LoRAs" if dtype == torch.float32 else half
    return NotFiniteError(f"{where}: {what} came out as no numbers in {name}; {remedy}")
