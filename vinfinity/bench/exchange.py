"""What ranks send each other: counted on tensors without data, and timed on real ranks."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from vinfinity.bench.timing import Times, time_in_turn
from vinfinity.bench.unet import our_call, shape_of
from vinfinity.job import pick_dtype
from vinfinity.models.unet3d.unet import UNetConfig
from vinfinity.parallel.exchange import FrameExchange, OwnFrames
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.trace import WHOLE, Clip, unet_call
from vinfinity.weights.card import read_card

ATTENTION = ("temporal attention 1", "temporal attention 2")


@dataclass(frozen=True)
class Traffic:
    """What one inner rank does during one UNet call.

    waits: points at which it waits for others. messages, bytes: what it sends. attention_bytes: the part of it for
    temporal attention; key_value_bytes: what that part would be if keys and values were sent.
    """

    ranks: int
    frames: int
    waits: int
    messages: int
    bytes: int
    attention_bytes: int
    key_value_bytes: int

    @property
    def bytes_with_key_values(self) -> int:
        return self.bytes - self.attention_bytes + self.key_value_bytes


def count_traffic(
    config: UNetConfig,
    *,
    ranks: int,
    frames: int,
    latent: tuple[int, int],
    scopes: Scopes,
    branches: int = 2,
    dtype: torch.dtype = torch.float16,
) -> Traffic:
    """One UNet call of an inner rank on meta tensors.

    They have shapes but no data: reading a value on the host, and so any wait for the device, would raise.
    frames: per rank. latent: (h, w). branches: guidance branches in a call.
    """
    clip = Clip(
        unet=config,
        shards=FrameShards(frames * ranks, ranks),
        rank=ranks // 2,
        latent=latent,
        scopes=scopes,
        dtype=dtype,
    )
    call = unet_call(clip, replace(WHOLE, branches=branches))
    with torch.inference_mode():
        call.run(torch.empty(1, config.in_channels, frames, *latent, device="meta"))
    exchange = call.exchange
    sent = exchange.by_label
    # the second attention sends states of the width of its keys: keys and values of both would be four of these
    return Traffic(
        ranks=ranks,
        frames=frames,
        waits=exchange.counters.waits,
        messages=exchange.counters.messages,
        bytes=exchange.counters.bytes,
        attention_bytes=sum(sent[label] for label in ATTENTION),
        key_value_bytes=4 * sent[ATTENTION[1]],
    )


@dataclass(frozen=True)
class TimingRequest:
    """model: its name or folder. rounds: pairs of calls, one of each kind in turn."""

    model: str
    scopes: Scopes
    rounds: int


FRAMES = 24  # of each rank in a timed call


def time_exchange(model: str, *, ranks: int, scopes: Scopes, rounds: int, device: str) -> Times:
    """Times UNet calls on real ranks: with the exchange, and with a rank's own frames in its place."""
    read_card(model)  # refuse what is no model before ranks are started
    request = TimingRequest(model=model, scopes=scopes, rounds=rounds)
    return launch(_time_on_rank, request, gpus=ranks, device=device, timeout=120.0)


def _time_on_rank(request: TimingRequest, ranks: Ranks) -> Times:
    dtype = pick_dtype("auto", ranks.device)
    shape = shape_of(request.model, frames=FRAMES)
    unet = shape.build(dtype, str(ranks.device))
    team = ranks.team(FRAMES * ranks.size, split=False)
    kinds: dict[str, FrameExchange] = {"exchanged": team.exchange(), "local": OwnFrames()}
    calls = {
        kind: our_call(
            shape,
            unet,
            dtype=dtype,
            device=str(ranks.device),
            scopes=request.scopes,
            team=team,
            exchange=exchange,
        )
        for kind, exchange in kinds.items()
    }
    return time_in_turn(calls, rounds=request.rounds, meet=lambda: ranks.collect(None))


def traffic_table(traffic: Sequence[Traffic]) -> list[tuple[str, ...]]:
    """Rows for people, one for each count."""
    title = ("ranks x frames", "waits", "messages", "sent", "with K and V", "ratio", "of attention alone")
    rows = (
        (
            f"{one.ranks} x {one.frames}",
            str(one.waits),
            str(one.messages),
            f"{one.bytes / 1e6:,.0f} MB",
            f"{one.bytes_with_key_values / 1e6:,.0f} MB",
            f"{one.bytes / one.bytes_with_key_values:.3f}",
            f"{one.attention_bytes / one.key_value_bytes:.3f}",
        )
        for one in traffic
    )
    return [title, *rows]


def timing_table(times: Times) -> list[tuple[str, str]]:
    """Rows for people: the medians, and the ratio with its spread over the rounds."""
    rounds = len(times.seconds["exchanged"])
    return [
        ("with exchange", f"{1000 * times.median('exchanged'):.0f} ms, median of {rounds}"),
        ("without", f"{1000 * times.median('local'):.0f} ms"),
        ("ratio", times.ratio("exchanged", "local")),
    ]


def write_json(path: Path, traffic: Sequence[Traffic], times: Times | None) -> None:
    """The figures as JSON."""
    figures: dict[str, object] = {"traffic": [asdict(one) for one in traffic]}
    if times is not None:
        figures["seconds"] = dict(times.seconds)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
