"""The networks on tensors without data: the real layers run, so that no figure can drift from what they do."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.guidance import guide
from vinfinity.denoise.samplers import Sampler, State
from vinfinity.media.blocks import Blocks
from vinfinity.models.offload import DeviceStore, HostStore
from vinfinity.models.unet3d.clip import TextConfig, TextEncoder
from vinfinity.models.unet3d.taesd import LatentDecoder
from vinfinity.models.unet3d.unet import DeepFeatures, UNet, UNetConfig
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import TracedExchange
from vinfinity.parallel.scopes import AttentionPlan, QueryBlock, Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.meter import LiveBytes, Work
from vinfinity.weights.load import KINDS

STRETCHES = 16  # from which on memory is taken to be a straight line
WHOLE = Execution(branches=1, skips="device", chunk_bytes=2**62)  # all frames at once: the fewest operations


@dataclass(frozen=True)
class Clip:
    """What one rank is asked for in a UNet call. latent: (h, w). text: tokens of the prompt.
    reuse: levels that run in every step, where the features of the others are kept; a traced call keeps them anew.
    """

    unet: UNetConfig
    shards: FrameShards
    rank: int
    latent: tuple[int, int]
    scopes: Scopes | None
    dtype: torch.dtype
    norm: Literal["video", "rank"] = "video"
    trained_frames: int = 16
    text: int = 77
    reuse: int | None = None

    @property
    def frames(self) -> int:
        """Those that the rank holds."""
        return len(self.shards.held(self.rank))


@dataclass(frozen=True)
class Call:
    """A UNet call, ready to be made. run: makes it, for latents (1, c, f, h, w) in fp32."""

    unet: UNet
    run: Callable[[Tensor], Tensor]
    exchange: TracedExchange


def unet_call(
    clip: Clip, execution: Execution, *, unet: UNet | None = None, few_blocks: bool = False
) -> Call:
    """The UNet call of `clip` as predict.py makes it: the one place that knows how.

    unet: with data, for measurements; None makes one without. few_blocks: of the blocks of queries in temporal
    attention only some of each shape run. Each frees what it made when the next is at work, so that memory at most is
    the same, in a fraction of the operations.
    """
    unet = empty_unet(clip.unet, clip.dtype) if unet is None else unet
    device = unet.conv_in.weight.device
    exchange = TracedExchange(clip.rank, clip.shards)
    context = temporal_context(
        exchange,
        clip.shards,
        clip.rank,
        clip.scopes,
        trained_frames=clip.trained_frames,
        norm=clip.norm,
        device=device,
    )
    attention = each_kind(context.attention) if few_blocks else context.attention
    context = replace(context, attention=attention, chunk_bytes=execution.chunk_bytes)
    store = HostStore(device) if execution.skips == "host" else DeviceStore()
    with device:
        text = torch.zeros(execution.branches, clip.text, clip.unet.cross_attention_dim, dtype=clip.dtype)
        t = torch.zeros(1)
        fps = torch.zeros(1) if clip.unet.fps_cond else None
        width = clip.unet.time_cond_proj_dim
        condition = None if width is None else torch.zeros(1, width)

    def run(x: Tensor) -> Tensor:
        branches = x.to(clip.dtype).expand(execution.branches, *x.shape[1:])
        deep = None if clip.reuse is None else DeepFeatures(clip.reuse)
        kept.append(deep)
        return unet(branches, t, text, context, fps=fps, condition=condition, store=store, deep=deep)

    kept: list[DeepFeatures | None] = []  # of all calls, as a run keeps those of its branches
    return Call(unet=unet, run=run, exchange=exchange)


def each_kind(plan: AttentionPlan) -> AttentionPlan:
    """The plan with blocks of queries of every shape, each after a block of every shape that comes before one such: the
    keys of the block before are still there when a block begins.
    """

    def kind(block: QueryBlock) -> tuple[int | None, ...]:
        return len(block.queries), None if block.keys is None else len(block.keys), block.bias is None

    seen: set[object] = set()
    kept: list[QueryBlock] = []
    for before, block in zip((None, *plan.blocks), plan.blocks, strict=False):
        pair = (None if before is None else kind(before), kind(block))
        if pair not in seen:
            seen.add(pair)
            kept += [block] if before is None or (kept and kept[-1] is before) else [before, block]
    return replace(plan, blocks=tuple(kept))


@lru_cache(maxsize=4)
def empty_unet(config: UNetConfig, dtype: torch.dtype) -> UNet:
    """A UNet with shapes but no weights, in the types that loading gives it."""
    with torch.device("meta"):
        unet = UNet(config).to(dtype)
    for name, module in unet.named_children():
        if f"{name}.".startswith(KINDS["unet"].full):
            module.float()
    return unet.eval().requires_grad_(False)


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one rank holds at most during a denoising step, and where.

    state: latents, the sampler's history and the predictions of guidance branches that are done. skips: what the way
    down leaves for the way up. exchange: messages to and from other ranks, the most at once. working: all but the
    weights at the peak; what is not in the other three are temporaries. host: skips kept in the host's memory.
    """

    weights: int
    state: int
    skips: int
    exchange: int
    working: int
    host: int

    @property
    def temporaries(self) -> int:
        return self.working - self.state - self.skips - self.exchange

    @property
    def device(self) -> int:
        return self.weights + self.working


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_step(clip: Clip, execution: Execution, sampler: Sampler, *, branches: int) -> StepMemory:
    """One denoising step of a rank: its guidance branches, `execution.branches` at once, then the sampler.

    branches: those that this rank takes. Of branches in turn only the last runs, unless the others keep features; their
    predictions wait.
    """
    call = unet_call(clip, execution, few_blocks=True)
    shape = (1, clip.unet.in_channels, clip.frames, *clip.latent)
    before_mid: list[int] = []

    def noise(step: int) -> Tensor:
        return torch.empty(shape, device="meta")

    with torch.device("meta"):
        # samplers of several steps keep an estimate: as it is from the second step on
        first = sampler.step(State(step=0, x=torch.empty(shape)), torch.empty(shape), noise)
    index = min(1, len(sampler.timesteps) - 1)
    live = LiveBytes()
    hook = call.unet.mid_block.register_forward_pre_hook(lambda *_: before_mid.append(live.now))
    try:
        with live:
            history = None if first.clean is None else torch.empty(shape, device="meta")
            state = State(step=index, x=torch.empty(shape, device="meta"), clean=history)
            waiting = branches - execution.branches
            done = torch.empty(waiting, *shape[1:], dtype=clip.dtype, device="meta")
            held = live.now
            if clip.reuse is not None:
                for _ in range(waiting // execution.branches):
                    call.run(state.x)
                before_mid.clear()
            predictions = torch.cat([done, call.run(state.x)])
            del done
            sampler.step(state, guide(predictions.float(), 2.0), noise)
    finally:
        hook.remove()
    return StepMemory(
        weights=parameter_bytes(call.unet),
        state=held,
        skips=before_mid[0] - held,
        exchange=call.exchange.largest,
        working=live.peak,
        host=live.host_peak,
    )


def step_memory(clip: Clip, execution: Execution, sampler: Sampler, *, branches: int) -> StepMemory:
    """What `trace_step` finds; for a clip of very many stretches, from two shorter ones: no temporary grows with the
    video, so that from some stretches on all that is held lies on a straight line in frames.
    """
    h, w = clip.latent
    state = execution.branches * h * w * clip.unet.block_out_channels[0] * clip.dtype.itemsize
    few = STRETCHES * max(1, execution.chunk_bytes // state)
    if clip.frames <= 2 * few:
        return trace_step(clip, execution, sampler, branches=branches)
    low, high = (
        asdict(trace_step(holding(clip, frames), execution, sampler, branches=branches))
        for frames in (few, 2 * few)
    )
    steps = (clip.frames - few) / few
    return StepMemory(**{part: round(low[part] + steps * (high[part] - low[part])) for part in low})


def holding(clip: Clip, frames: int) -> Clip:
    """The same with that many frames on each rank."""
    return replace(clip, shards=FrameShards(frames * clip.shards.ranks, clip.shards.ranks))


@dataclass(frozen=True)
class StepWork:
    """What one rank does in one UNet call of one guidance branch. waits, messages and bytes: sent to other ranks."""

    work: Work
    waits: int
    messages: int
    bytes: int


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_work(clip: Clip) -> StepWork:
    """Counts the operations and messages of one guidance branch; how the call is carried out does not change them."""
    call = unet_call(clip, WHOLE)
    x = torch.empty(1, clip.unet.in_channels, clip.frames, *clip.latent, device="meta")
    with Work() as work:
        call.run(x)
    sent = call.exchange.counters
    return StepWork(work=work, waits=sent.waits, messages=sent.messages, bytes=sent.bytes)


@dataclass(frozen=True)
class BlockMemory:
    """Bytes of a network's weights, and of all else that a call holds at most; what the call does."""

    weights: int
    working: int
    work: Work

    @property
    def device(self) -> int:
        return self.weights + self.working


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_decode(decoder: LatentDecoder, blocks: Blocks, latent: tuple[int, int]) -> BlockMemory:
    """Decoding a block of frames, in fp32. latent: (h, w). Of tiles, memory is that of the arithmetic which cuts
    them; tests compare it with a trace.
    """
    with torch.device("meta"):
        latents = torch.empty(blocks.frames, decoder.config.latent_channels, *latent)
    with LiveBytes() as live, Work() as work:
        decoder.decode(latents)
    working = live.peak if blocks.tile is None else blocks.bytes
    return BlockMemory(weights=parameter_bytes(decoder), working=working, work=work)


@lru_cache(maxsize=32)
@torch.inference_mode()
def trace_text(config: TextConfig, dtype: torch.dtype, *, texts: int) -> BlockMemory:
    """Encoding that many texts at once."""
    with torch.device("meta"):
        encoder = TextEncoder(config).to(dtype)
        ids = torch.empty(texts, config.max_position_embeddings, dtype=torch.int64)
    with LiveBytes() as live, Work() as work:
        encoder(ids)
    return BlockMemory(weights=parameter_bytes(encoder), working=live.peak, work=work)


def parameter_bytes(network: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())
