"""Run the real networks on meta tensors, which have shapes but no data: plans cannot drift from the code."""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.guidance import guide
from vinfinity.denoise.state import Sampler, State, steady_state
from vinfinity.media.blocks import Blocks
from vinfinity.media.encode import encode_pictures
from vinfinity.models.decoder import Decoder, Encoder
from vinfinity.models.family import TEXT_ENCODER, DenoiserTraits, Family
from vinfinity.models.frame_text import FrameText
from vinfinity.models.network_call import CallOptions, NetworkCall
from vinfinity.models.offload import store_for
from vinfinity.parallel.context import TemporalContext, temporal_context
from vinfinity.parallel.exchange import FrameExchange, TracedExchange
from vinfinity.parallel.groups import Grouping, Piece
from vinfinity.parallel.joint import Positions
from vinfinity.parallel.scopes import AttentionPlan, QueryBlock, Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.spans import intersection
from vinfinity.parallel.timeline import Timeline
from vinfinity.planning.meter import LiveBytes, WorkCounter

T = TypeVar("T")

# latent frames of a rank from which on work and memory of joint attention grow linearly
EXTRAPOLATE_FROM = 24
# all frames in one chunk, which takes the fewest operations
ONE_CHUNK = Execution(branches=1, skips="device", chunk_bytes=2**62)
# any timestep, frame rate and guidance scale will do: they change no shape
TIMESTEP = 500.0
FPS = 8.0
GUIDANCE = 2.0


@dataclass(frozen=True)
class CallShape:
    """The shapes of one rank's call of the denoising network.

    config: the denoiser's configuration, as its family reads it. shards: how ranks share the video. latent_size: (h, w)
    of a latent frame. scopes: None for plain attention over all frames. text_tokens: the length of the text states.
    reuse_depth: the number of levels that run in every step while deep features are reused, None without reuse; a
    traced call always runs the whole network. timeline: scenes and loops, None for one scene. joint: how positions are
    computed in models with joint attention, None for other models. on_cpu: whether the real call would run on a CPU.
    """

    family: Family
    config: Hashable
    shards: FrameShards
    rank: int
    latent_size: tuple[int, int]
    scopes: Scopes | None
    dtype: torch.dtype
    norm: Literal["video", "rank"] = "video"
    trained_frames: int = 16
    text_tokens: int = 77
    reuse_depth: int | None = None
    timeline: Timeline | None = None
    joint: Positions | None = None
    on_cpu: bool = False

    @property
    def traits(self) -> DenoiserTraits:
        """The denoiser's properties, as its family declares them."""
        return self.family.denoiser_traits(self.config)

    @property
    def frames(self) -> int:
        """The number of latent frames of this rank."""
        return len(self.shards.held(self.rank))

    @property
    def latents(self) -> tuple[int, int, int, int, int]:
        """The shape of this rank's latents, (1, c, f, h, w)."""
        return (1, self.traits.channels, self.frames, *self.latent_size)

    def with_frames(self, frames: int) -> "CallShape":
        """Return the call with `frames` latent frames on each rank, in one scene."""
        ranks = self.shards.ranks
        return replace(self, shards=FrameShards(frames * ranks, ranks, self.shards.group), timeline=None)

    def traced_exchange(self) -> TracedExchange:
        """Make an exchange that allocates this rank's messages and counts them."""
        return TracedExchange(self.rank, self.shards)


def network_call(
    shape: CallShape,
    execution: Execution,
    exchange: FrameExchange,
    *,
    network: nn.Module | None = None,
    text: Tensor | None = None,
    context: TemporalContext | None = None,
    few_pieces: bool = False,
) -> NetworkCall:
    """Make the call that `shape` describes, with `execution.branches` guidance branches.

    network: None for one on meta tensors. text: (branches, t, c), None for zeros. context: None for the result of
    `call_context`. few_pieces: whether to run only some pieces of the frames and query blocks of temporal attention,
    enough of each shape. Each frees its tensors when the next one runs, so peak memory is the same, for a fraction of
    the operations.
    """
    network = empty_denoiser(shape.family, shape.config, shape.dtype) if network is None else network
    device = next(network.parameters()).device
    context = context or call_context(shape, execution, exchange, device=device)
    if few_pieces:
        context = replace(
            context,
            attention=representative_blocks(context.attention),
            grouping=RepresentativePieces(**vars(context.grouping)),
        )
    if text is None:
        states = (execution.branches, shape.text_tokens, shape.traits.text_width)
        text = torch.zeros(states, dtype=shape.dtype, device=device)
    options = CallOptions(
        branches_at_once=execution.branches,
        store=store_for(execution.skips, device),
        fps=FPS,
        guidance=GUIDANCE,
        reuse_depth=shape.reuse_depth,
    )
    return shape.family.network_call(network, FrameText.same(text), lambda t: context, options)


def call_context(
    shape: CallShape, execution: Execution, exchange: FrameExchange, *, device: torch.device | str = "meta"
) -> TemporalContext:
    """Make the context through which the call's temporal layers see the rest of the video."""
    return temporal_context(
        exchange,
        shape.shards,
        shape.rank,
        shape.scopes,
        timeline=shape.timeline,
        trained_frames=shape.trained_frames,
        norm=shape.norm,
        chunk_bytes=execution.chunk_bytes,
        joint=shape.joint,
        device=device,
        together=shape.on_cpu or torch.device(device).type == "cpu",
    )


def representative_blocks(plan: AttentionPlan) -> AttentionPlan:
    """Return the plan with one pair of consecutive query blocks for each combination of their shapes.

    Pairs, because the keys of a block are still alive when the next block begins.
    """

    def shape(block: QueryBlock) -> tuple[int, ...]:
        rows = block.rows if plan.grouped else intersection(block.rows, plan.held)
        return len(rows), len(block.units), len(block.keys), len(block.slots(rows)), block.bias is None

    return replace(plan, blocks=tuple(representatives(plan.blocks, shape)))


class RepresentativePieces(Grouping):
    """A grouping that runs only one pair of consecutive pieces for each combination of their shapes."""

    def covering(self, borders: Sequence[int], most: int) -> list[Piece]:
        pieces = super().covering(borders, most)
        chosen = representatives(pieces, _piece_shape)
        return [piece if piece in chosen else replace(piece, skipped=True) for piece in pieces]

    def of(self, span: range, most: int, *, group: int | None = None) -> list[Piece]:
        return representatives(super().of(span, most, group=group), _piece_shape)


def _piece_shape(piece: Piece) -> tuple[int, ...]:
    return piece.own.stop - piece.own.start, piece.before, piece.after


def representatives(items: Sequence[T], shape: Callable[[T], Hashable]) -> list[T]:
    """Return, in order, the first pair of consecutive items for each combination of their shapes."""
    seen: set[object] = set()
    chosen: list[T] = []
    for before, item in zip((None, *items), items, strict=False):
        pair = (None if before is None else shape(before), shape(item))
        if pair not in seen:
            seen.add(pair)
            chosen += [item] if before is None or (chosen and chosen[-1] is before) else [before, item]
    return chosen


@lru_cache(maxsize=4)
def empty_denoiser(family: Family, config: Hashable, dtype: torch.dtype) -> nn.Module:
    """Make a denoising network on meta tensors, with the data types it has when loaded."""
    description = family.networks[family.denoiser]
    with torch.device("meta"):
        network = description.build(config)
    kept = description.fp32_parameters(network)
    for name, parameter in network.named_parameters():
        if name not in kept:
            parameter.data = parameter.data.to(dtype)
    return network.eval().requires_grad_(False)


@lru_cache(maxsize=4)
def empty_text_encoder(family: Family, config: Hashable, dtype: torch.dtype) -> nn.Module:
    """Make a text encoder on meta tensors."""
    with torch.device("meta"):
        return family.networks[TEXT_ENCODER].build(config).to(dtype)


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of one rank during a denoising step, in bytes.

    state: latents, the sampler's history and the predictions of finished guidance branches. skips: skip connections.
    exchange: messages to and from other ranks, at their peak. working: everything at the peak except the weights; what
    the three above do not account for is temporaries. host: skip connections in the host's memory.
    """

    weights: int
    state: int
    skips: int
    exchange: int
    working: int
    host: int

    @property
    def temporaries(self) -> int:
        """What is left of `working` without state, skips and exchange."""
        return self.working - self.state - self.skips - self.exchange

    @property
    def device(self) -> int:
        """The peak on the device, weights included."""
        return self.weights + self.working


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_step(shape: CallShape, execution: Execution, sampler: Sampler, *, branches: int) -> StepMemory:
    """Trace one denoising step of a rank: guidance branches in calls of `execution.branches` each, then the sampler.

    branches: the number of guidance branches that this rank computes.
    """
    exchange = shape.traced_exchange()
    # with reuse, each call keeps its own features; without, the last call has the highest peak
    passes = branches // execution.branches if shape.reuse_depth is not None else 1
    # not counted: its weights are added below
    network = empty_denoiser(shape.family, shape.config, shape.dtype)
    before_middle: list[int] = []

    def noise(step: int) -> Tensor:
        return torch.empty(shape.latents, device="meta")

    with torch.device("meta"):
        # multistep samplers have a history after the first steps
        steady = steady_state(sampler, torch.empty(shape.latents))
    live = LiveBytes()
    hook = None
    try:
        with live:
            # includes what attention keeps from step to step, for all query blocks
            context = call_context(shape, execution, exchange)
            context.attention.prepare(shape.dtype)
            calls = [
                network_call(shape, execution, exchange, network=network, context=context, few_pieces=True)
                for _ in range(passes)
            ]
            # plans are made on the host
            live.host_peak = live.host_now
            middle = calls[0].middle
            if middle is not None:
                hook = middle.register_forward_pre_hook(lambda *_: before_middle.append(live.now))
            kept = {name: torch.empty(shape.latents, device="meta") for name in steady.tensors}
            state = State(step=steady.step, **kept)
            others = branches - execution.branches
            done = torch.empty(others, *shape.latents[1:], dtype=shape.dtype, device="meta")
            held = live.now
            for call in calls[:-1]:
                call(state.x, TIMESTEP)
            predictions = torch.cat([done, calls[-1](state.x, TIMESTEP)])
            del done
            sampler.step(state, guide(predictions.float(), GUIDANCE), noise)
    finally:
        if hook is not None:
            hook.remove()
    return StepMemory(
        weights=parameter_bytes(network),
        state=held,
        skips=before_middle[-1] - held if before_middle else 0,
        exchange=exchange.largest,
        working=live.peak,
        host=live.host_peak,
    )


def step_memory(shape: CallShape, execution: Execution, sampler: Sampler, *, branches: int) -> StepMemory:
    """Return the result of `trace_step`, extrapolated from two shorter clips for many frames with joint attention.

    Joint attention computes one latent frame after another: memory grows linearly, but tracing every frame is slow.
    """
    if shape.joint is None or shape.frames <= 2 * EXTRAPOLATE_FROM:
        return trace_step(shape, execution, sampler, branches=branches)
    low, high = (
        asdict(trace_step(shape.with_frames(frames), execution, sampler, branches=branches))
        for frames in (EXTRAPOLATE_FROM, 2 * EXTRAPOLATE_FROM)
    )
    steps = (shape.frames - EXTRAPOLATE_FROM) / EXTRAPOLATE_FROM
    return StepMemory(**{part: round(low[part] + steps * (high[part] - low[part])) for part in low})


@dataclass(frozen=True)
class CallWork:
    """The work of one rank in one call of the denoising network, for one guidance branch.

    waits: how often the rank waits for others. messages, bytes: what it sends to them.
    """

    counter: WorkCounter
    waits: int
    messages: int
    bytes: int


def call_work(shape: CallShape) -> CallWork:
    """Return the result of `trace_work`, extrapolated from two shorter clips for many frames with joint attention.

    Joint attention computes one latent frame after another: counts grow linearly, but tracing every frame is slow.
    """
    if shape.joint is None or shape.frames <= 2 * EXTRAPOLATE_FROM:
        return trace_work(shape)
    low, high = (trace_work(shape.with_frames(frames)) for frames in (EXTRAPOLATE_FROM, 2 * EXTRAPOLATE_FROM))
    steps = (shape.frames - EXTRAPOLATE_FROM) / EXTRAPOLATE_FROM
    return CallWork(
        counter=low.counter.extrapolated(high.counter, steps),
        waits=high.waits,
        messages=high.messages,
        bytes=high.bytes,
    )


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_work(shape: CallShape) -> CallWork:
    """Count the operations and messages of one guidance branch, which are the same for every execution."""
    exchange = shape.traced_exchange()
    call = network_call(shape, ONE_CHUNK, exchange)
    x = torch.empty(shape.latents, device="meta")
    with WorkCounter() as counter:
        call(x, TIMESTEP)
    sent = exchange.counters
    return CallWork(counter=counter, waits=sent.waits, messages=sent.messages, bytes=sent.bytes)


@dataclass(frozen=True)
class NetworkMemory:
    """The bytes of a network's weights, those of everything else at the peak of a call, and the call's work."""

    weights: int
    working: int
    work: WorkCounter

    @property
    def device(self) -> int:
        """The peak on the device, weights included."""
        return self.weights + self.working


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_decode(decoder: Decoder, blocks: Blocks, latent_size: tuple[int, int]) -> NetworkMemory:
    """Trace decoding one block of latent frames in fp32, not the first of the video. latent_size: (h, w).

    With tiles, memory is what `plan_blocks` computed to choose them; tests compare it with a trace.
    """
    with torch.device("meta"):
        latents = torch.empty(blocks.frames, decoder.config.latent_channels, *latent_size)
    stream = decoder.stream()
    with LiveBytes() as live:
        # a causal decoder keeps frames, the most from the third block on
        for _ in range(2 if decoder.config.causal else 0):
            deque(stream.decode(latents), maxlen=0)
        with WorkCounter() as work:
            deque(stream.decode(latents), maxlen=0)
    working = live.peak if blocks.tile is None else blocks.bytes
    return NetworkMemory(weights=parameter_bytes(decoder), working=working, work=work)


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_encode(
    encoder: Encoder, latent_frames: int, size: tuple[int, int], latent_shape: tuple[int, int, int]
) -> NetworkMemory:
    """Trace encoding `latent_frames` latent frames at once in fp32, not the first ones of the video.

    size: (width, height) in pixels. latent_shape: (c, h, w).
    """
    width, height = size
    stream, scale = encoder.encoder_stream(), encoder.config.time_downscale
    # a causal encoder keeps frames, the most from the third latent frame on
    before = (1, scale) if encoder.config.causal else ()
    with torch.device("meta"):
        pictures = torch.empty(latent_frames * scale, height, width, 3, dtype=torch.uint8)
    with LiveBytes() as live:
        for count in before:
            encode_pictures(encoder, pictures[:count], latent=latent_shape, stream=stream)
        with WorkCounter() as work:
            encode_pictures(encoder, pictures, latent=latent_shape, stream=stream)
    return NetworkMemory(weights=parameter_bytes(encoder), working=live.peak, work=work)


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_text(
    family: Family, config: Hashable, dtype: torch.dtype, *, texts: int, tokens: int
) -> NetworkMemory:
    """Trace encoding a batch of `texts` texts of `tokens` tokens. config: the text encoder's configuration."""
    encoder = empty_text_encoder(family, config, dtype)
    ids = torch.empty(texts, tokens, dtype=torch.int64, device="meta")
    with LiveBytes() as live, WorkCounter() as work:
        family.encode_text(encoder, ids, [tokens] * texts)
    return NetworkMemory(weights=parameter_bytes(encoder), working=live.peak, work=work)


def parameter_bytes(network: torch.nn.Module | Decoder | Encoder) -> int:
    """Return the bytes of a network's parameters."""
    return sum(parameter.nbytes for parameter in network.parameters())
