"""What more ranks gain: a video on one rank against the same video shared by several, in one process each."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vinfinity.bench.timing import Times, time_in_turn
from vinfinity.bench.unet import our_call, shape_of
from vinfinity.job import pick_dtype
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes
from vinfinity.weights.card import read_card


@dataclass(frozen=True)
class Request:
    """model: its name or folder. frames: of the whole video."""

    model: str
    frames: int
    rounds: int


def measure_scaling(model: str, *, ranks: int, frames: int, rounds: int, device: str) -> Times:
    """Seconds of a UNet call for the whole video by rank 0 alone while the others rest, and by all of them, in turn.

    On CPUs each rank has one thread.
    """
    read_card(model)  # refuse what is no model before ranks are started
    request = Request(model=model, frames=frames, rounds=rounds)
    return launch(_measure_on_rank, request, gpus=ranks, device=device, timeout=600.0)


def _measure_on_rank(request: Request, ranks: Ranks) -> Times:
    torch.set_num_threads(1)
    dtype = pick_dtype("auto", ranks.device)
    whole = shape_of(request.model, frames=request.frames)
    unet = whole.build(dtype, str(ranks.device))
    team = ranks.team(request.frames, split=False)
    common: dict[str, Any] = {"dtype": dtype, "device": str(ranks.device), "scopes": Scopes(anchor_bias=10.0)}
    part = replace(whole, frames=len(team.held))
    alone: Callable[[], object] = our_call(whole, unet, **common) if ranks.first else lambda: None
    return time_in_turn(
        {"alone": alone, "together": our_call(part, unet, team=team, **common)},
        rounds=request.rounds,
        meet=lambda: ranks.collect(None),
    )


def scaling_table(times: Times, *, ranks: int, frames: int) -> list[tuple[str, str]]:
    """Rows for people. Efficiency: the time alone over that together, for each rank."""
    ratios = times.ratios("alone", "together")
    low, middle, high = (ratios[i] / ranks for i in (0, len(ratios) // 2, -1))
    return [
        ("video", f"{frames} frames, one UNet call, both guidance branches"),
        ("one rank", f"{times.median('alone'):.3f} s"),
        (f"{ranks} ranks", f"{times.median('together'):.3f} s"),
        ("efficiency", f"{middle:.3f} ({low:.3f} to {high:.3f})"),
    ]


def write_json(path: Path, times: Times) -> None:
    """The figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seconds": dict(times.seconds)}, indent=2) + "\n", encoding="utf-8")
