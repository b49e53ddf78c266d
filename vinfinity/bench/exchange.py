"""The messages between ranks: counted on meta tensors, and timed on real ranks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vinfinity.bench.denoiser import timed_call
from vinfinity.bench.subjects import find_subject
from vinfinity.bench.timing import Times, time_in_turn
from vinfinity.parallel.exchange import Counters, Done, Fetched, FrameExchange, Pending
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import Route
from vinfinity.planning.trace import ONE_CHUNK, TIMESTEP, CallShape, network_call
from vinfinity.weights.dtypes import pick_dtype

ATTENTION = ("temporal attention 1", "temporal attention 2")
# latent frames of each rank in a timed call
FRAMES = 24


class NoExchange:
    """Substitutes this rank's own frames for those of others and sends nothing, to time a call without messages."""

    def __init__(self) -> None:
        self.counters = Counters()

    def fetch(self, x: Tensor, route: Route, *, sums: Tensor | None = None, label: str = "") -> Pending:
        frames = x[:, :1].expand(-1, len(route.wanted), *x.shape[2:])
        return Done(Fetched(frames=frames, sums=sums))


@dataclass(frozen=True)
class Traffic:
    """What one rank does during one UNet call.

    frames: the number of frames on each rank. waits: how often it waits for others. messages, bytes: what it sends.
    attention_bytes: the part of `bytes` for temporal attention. key_value_bytes: what that part would be if keys and
    values were sent instead.
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


def count_traffic(shape: CallShape, *, branches: int = 2) -> Traffic:
    """Trace one UNet call on meta tensors. branches: its guidance branches.

    Reading a value on the host, and so any wait for the device, would raise: meta tensors have no data.
    """
    exchange = shape.traced_exchange()
    call = network_call(shape, replace(ONE_CHUNK, branches=branches), exchange)
    with torch.inference_mode():
        call(torch.empty(shape.latents, device="meta"), TIMESTEP)
    sent = exchange.by_label
    # the second attention sends hidden states as wide as its keys; keys and values of both would be four of these
    return Traffic(
        ranks=shape.shards.ranks,
        frames=shape.frames,
        waits=exchange.counters.waits,
        messages=exchange.counters.messages,
        bytes=exchange.counters.bytes,
        attention_bytes=sum(sent[label] for label in ATTENTION),
        key_value_bytes=4 * sent[ATTENTION[1]],
    )


@dataclass(frozen=True)
class TimingRequest:
    """What to time. model: its name or folder. rounds: pairs of calls, one with and one without exchange."""

    model: str
    scopes: Scopes
    rounds: int


def time_exchange(model: str, *, ranks: int, scopes: Scopes, rounds: int, device: str) -> Times:
    """Time calls of the denoiser on real ranks, with the exchange and without (each rank uses its own frames instead).

    Raises InputError if `model` does not exist, before ranks start.
    """
    find_subject(model)
    request = TimingRequest(model=model, scopes=scopes, rounds=rounds)
    return launch(_time_on_rank, request, gpus=ranks, device=device, timeout=120.0)


def _time_on_rank(request: TimingRequest, ranks: Ranks) -> Times:
    subject = find_subject(request.model)
    dtype = pick_dtype("auto", ranks.device, half=subject.family.half)
    network = subject.load(dtype, str(ranks.device))
    latent_frames = FRAMES * ranks.size
    frames = subject.geometry.frames(latent_frames)
    team = ranks.team(latent_frames, split=False, grouped=subject.grouped(dtype, ranks.device.type))
    exchanges: dict[str, FrameExchange] = {"exchanged": team.exchange(), "local": NoExchange()}
    calls = {
        name: timed_call(subject, network, frames=frames, scopes=request.scopes, team=team, exchange=exchange)
        for name, exchange in exchanges.items()
    }
    return time_in_turn(calls, rounds=request.rounds, barrier=lambda: ranks.all_gather(None))
