"""What more ranks gain: a call of the denoiser on one rank, against the same call shared by several."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vinfinity.bench.denoiser import timed_call
from vinfinity.bench.subjects import find_subject
from vinfinity.bench.timing import Times, time_in_turn
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.weights.dtypes import pick_dtype


@dataclass(frozen=True)
class ScalingRequest:
    """What to time.

    model: its name or folder. frames: the number of frames of the whole video. size: (width, height) in pixels; None
    for the model's own.
    """

    model: str
    frames: int
    size: tuple[int, int] | None
    rounds: int


def measure_scaling(
    model: str, *, ranks: int, frames: int, rounds: int, device: str, size: tuple[int, int] | None = None
) -> Times:
    """Time a call of the denoiser for the whole video, alternating between rank 0 alone and all ranks.

    On CPUs each rank has one thread. Raises InputError if `model` does not exist, before ranks start.
    """
    find_subject(model)
    request = ScalingRequest(model=model, frames=frames, size=size, rounds=rounds)
    return launch(_measure_on_rank, request, gpus=ranks, device=device, timeout=600.0)


def _measure_on_rank(request: ScalingRequest, ranks: Ranks) -> Times:
    torch.set_num_threads(1)
    subject = find_subject(request.model, size=request.size)
    dtype = pick_dtype("auto", ranks.device, half=subject.family.half)
    network = subject.load(dtype, str(ranks.device))
    team = ranks.team(
        subject.geometry.latent_frames(request.frames),
        split=False,
        grouped=subject.grouped(dtype, ranks.device.type),
    )
    together = timed_call(subject, network, frames=request.frames, scopes=subject.scopes, team=team)
    alone: Callable[[], object] = (
        timed_call(subject, network, frames=request.frames, scopes=subject.scopes)
        if ranks.is_first
        else lambda: None
    )
    return time_in_turn(
        {"alone": alone, "together": together},
        rounds=request.rounds,
        barrier=lambda: ranks.all_gather(None),
    )
