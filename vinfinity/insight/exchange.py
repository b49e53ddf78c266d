"""What ranks send each other: counted on tensors without data, and timed on real ranks."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from vinfinity.config import RunConfig, parse_size
from vinfinity.job import pick_dtype
from vinfinity.models.unet import UNetConfig
from vinfinity.parallel.context import Scopes, temporal_context
from vinfinity.parallel.exchange import FrameExchange, OwnFrames
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.trace import WHOLE, Clip, unet_call
from vinfinity.weights.card import read_card
from vinfinity.weights.load import load_unet

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
class Timing:
    """Seconds of one UNet call on each round: with the exchange, and with this rank's own frames in its place."""

    exchanged: tuple[float, ...]
    local: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        return [with_it / without for with_it, without in zip(self.exchanged, self.local, strict=True)]


@dataclass(frozen=True)
class TimingRequest:
    """model: its name or folder. rounds: pairs of calls, one of each kind in turn."""

    model: str
    scopes: Scopes
    rounds: int


FRAMES = 24  # of each rank in a timed call


def time_exchange(model: str, *, ranks: int, scopes: Scopes, rounds: int, device: str) -> Timing:
    """Times UNet calls on real ranks, as rank 0 sees them, the two kinds in turn so that drift hits both."""
    read_card(model)  # refuse what is no model before ranks are started
    request = TimingRequest(model=model, scopes=scopes, rounds=rounds)
    return launch(_time_on_rank, request, gpus=ranks, device=device, timeout=120.0)


def _time_on_rank(request: TimingRequest, ranks: Ranks) -> Timing:
    card = read_card(request.model)
    dtype = pick_dtype(RunConfig(), ranks.device)
    unet = load_unet(card.folder / "unet", device=ranks.device, dtype=dtype)
    shards = FrameShards(FRAMES * ranks.size, ranks.size)
    width, height = parse_size(str(card.defaults["size"]))
    latent = (-(-height // card.pixels), -(-width // card.pixels))
    kinds: dict[str, FrameExchange] = {
        "exchanged": ranks.team(shards.frames, split=False).exchange(),
        "local": OwnFrames(),
    }
    config = unet.config
    x = torch.randn(2, config.in_channels, FRAMES, *latent, device=ranks.device, dtype=dtype)
    text = torch.randn(2, 16, config.cross_attention_dim, device=ranks.device, dtype=dtype)
    t = torch.full((1,), 500.0, device=ranks.device)
    fps = torch.full((1,), 8.0, device=ranks.device) if config.fps_cond else None
    contexts = {
        kind: temporal_context(exchange, shards, ranks.rank, request.scopes, device=ranks.device)
        for kind, exchange in kinds.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with torch.inference_mode():
        for round_ in range(-1, request.rounds):  # the first round only warms up
            for kind, context in contexts.items():
                ranks.collect(round_)  # start together
                started = time.perf_counter()
                unet(x, t, text, context, fps=fps)
                if ranks.device.type == "cuda":
                    torch.cuda.synchronize()
                ranks.collect(round_)  # a call lasts until the slowest rank is done
                if round_ >= 0:
                    seconds[kind].append(time.perf_counter() - started)
    return Timing(exchanged=tuple(seconds["exchanged"]), local=tuple(seconds["local"]))


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


def timing_table(timing: Timing) -> list[tuple[str, str]]:
    """Rows for people: the medians, and the ratio with its spread over the rounds."""
    ratios = sorted(timing.ratios)
    return [
        ("with exchange", f"{1000 * statistics.median(timing.exchanged):.0f} ms, median of {len(ratios)}"),
        ("without", f"{1000 * statistics.median(timing.local):.0f} ms"),
        ("ratio", f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"),
    ]


def write_json(path: Path, traffic: Sequence[Traffic], timing: Timing | None) -> None:
    """The figures as JSON."""
    figures: dict[str, object] = {"traffic": [asdict(one) for one in traffic]}
    if timing is not None:
        ratios = timing.ratios
        figures["timing"] = asdict(timing) | {"median_ratio": statistics.median(ratios)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
