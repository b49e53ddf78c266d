"""The gain of more ranks: a UNet call on one rank against the same call shared by several."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vinfinity.bench.subjects import find_subject
from vinfinity.bench.timing import Times, time_in_turn
from vinfinity.bench.unet import timed_call
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes
from vinfinity.weights.dtypes import depends_on_shapes, pick_dtype


@dataclass(frozen=True)
class ScalingRequest:
    """model: name or folder. frames: of the whole video."""

    model: str
    frames: int
    rounds: int


def measure_scaling(model: str, *, ranks: int, frames: int, rounds: int, device: str) -> Times:
    """Seconds of a UNet call for the whole video, in turn by rank 0 alone while the others idle, and by all ranks.

    On CPUs each rank has one thread. Raises InputError if `model` does not exist, before ranks start.
    """
    find_subject(model)
    request = ScalingRequest(model=model, frames=frames, rounds=rounds)
    return launch(_measure_on_rank, request, gpus=ranks, device=device, timeout=600.0)


def _measure_on_rank(request: ScalingRequest, ranks: Ranks) -> Times:
    torch.set_num_threads(1)
    subject, scopes = find_subject(request.model), Scopes(anchor_bias=10.0)
    dtype = pick_dtype("auto", ranks.device)
    unet, grouped = subject.load(dtype, str(ranks.device)), depends_on_shapes(dtype, ranks.device.type)
    team = ranks.team(request.frames, split=False, grouped=grouped)
    together = timed_call(subject, unet, frames=request.frames, scopes=scopes, team=team)
    alone: Callable[[], object] = (
        timed_call(subject, unet, frames=request.frames, scopes=scopes) if ranks.first else lambda: None
    )
    return time_in_turn(
        {"alone": alone, "together": together},
        rounds=request.rounds,
        barrier=lambda: ranks.collect(None),
    )
