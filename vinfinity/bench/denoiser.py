"""Time calls of a denoising network in each precision, plain and compiled."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vinfinity.bench.subjects import Subject, dtype_of
from vinfinity.bench.timing import Times, time_in_turn
from vinfinity.denoise.execution import CHUNK_BYTES, Execution
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.teams import Team, team_of
from vinfinity.planning.trace import TIMESTEP, CallShape, network_call
from vinfinity.weights.dtypes import DTYPES


def call_inputs(shape: CallShape, *, device: str) -> tuple[Tensor, Tensor]:
    """Return random latents (1, c, f, h, w) and text states of both guidance branches (2, t, c), from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.latents, generator=generator)
    text = torch.randn(2, shape.text_tokens, shape.traits.text_width, generator=generator)
    return x.to(device, shape.dtype), text.to(device, shape.dtype)


def timed_call(
    subject: Subject,
    network: nn.Module,
    *,
    frames: int,
    scopes: Scopes | None = None,
    team: Team | None = None,
    exchange: FrameExchange | None = None,
) -> Callable[[], Tensor]:
    """Return a call of `network` as a run makes it, with both guidance branches in one pass.

    network: the loaded network of `subject`. frames: the number of frames of the whole video. scopes: None for plain
    attention over all frames, as in the base model. team: the ranks that share its latent frames; None for one rank
    alone. exchange: replaces the team's own.
    """
    device = next(network.parameters()).device
    grouped, latent_frames = (
        subject.grouped(dtype_of(network), device.type),
        subject.geometry.latent_frames(frames),
    )
    team = team or team_of(0, 1, frames=latent_frames, split=False, grouped=grouped)
    shape = subject.call_shape(network, shards=team.shards, rank=team.member, scopes=scopes)
    execution = Execution(branches=2, skips="device", chunk_bytes=CHUNK_BYTES[device.type][0])
    x, text = call_inputs(shape, device=str(device))
    call = network_call(shape, execution, exchange or team.exchange(), network=network, text=text)

    def run() -> Tensor:
        with torch.inference_mode():
            return call(x, TIMESTEP)

    return run


def time_denoiser(
    subject: Subject, *, frames: int, dtypes: Sequence[str], compiled: bool, rounds: int, device: str
) -> Times:
    """Call in each precision, in turn. compiled: also time a compiled network in each."""
    calls: dict[str, Callable[[], Tensor]] = {}
    for name in dtypes:
        calls[name] = timed_call(subject, subject.load(DTYPES[name], device), frames=frames)
        if compiled:
            network = subject.load(DTYPES[name], device)
            subject.family.compile(network)
            calls[f"{name} compiled"] = timed_call(subject, network, frames=frames)
    return time_in_turn(calls, rounds=rounds)
