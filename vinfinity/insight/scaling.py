"""What more ranks gain: a video on one rank against the same video shared by several, in one process each."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vinfinity.config import parse_size
from vinfinity.execution import MIB
from vinfinity.insight.timing import Times, time_in_turn
from vinfinity.parallel.context import Scopes, temporal_context
from vinfinity.parallel.exchange import FrameExchange, LocalExchange
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards
from vinfinity.weights.card import read_card
from vinfinity.weights.load import load_unet


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
    card = read_card(request.model)
    dtype = torch.float16 if ranks.device.type == "cuda" else torch.float32
    unet = load_unet(card.folder / "unet", device=ranks.device, dtype=dtype)
    width, height = parse_size(str(card.defaults["size"]))
    config, latent = unet.config, (-(-height // card.pixels), -(-width // card.pixels))
    text = torch.randn(2, card.text_length, config.cross_attention_dim, device=ranks.device, dtype=dtype)
    t = torch.full((1,), 500.0, device=ranks.device)
    fps = torch.full((1,), 8.0, device=ranks.device) if config.fps_cond else None

    def call(shards: FrameShards, rank: int, exchange: FrameExchange) -> Callable[[], object]:
        frames = len(shards.held(rank))
        x = torch.randn(2, config.in_channels, frames, *latent, device=ranks.device, dtype=dtype)
        limit = (256 if ranks.device.type == "cuda" else 4) * MIB
        context = temporal_context(
            exchange, shards, rank, Scopes(anchor_bias=10.0), limit=limit, device=ranks.device
        )

        def run() -> None:
            with torch.inference_mode():
                unet(x, t, text, context, fps=fps)

        return run

    shared = FrameShards(request.frames, ranks.size)
    together = ranks.team(request.frames, split=False).exchange()
    alone = call(FrameShards(request.frames), 0, LocalExchange()) if ranks.first else lambda: None
    return time_in_turn(
        {"alone": alone, "together": call(shared, ranks.rank, together)},
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
