"""The 3-D UNet of ModelScope, Zeroscope and VideoCrafter2 (diffusers' UNet3DConditionModel).

Dims: b batch (guidance branches), f this rank's frames, h w latent height and width, c channels, t text tokens.
Latents are (b, 4, f, h, w) outside; inside, hidden states are (b, f, h, w, c), see layers.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.offload import DeviceStore, Frames, Held, Store
from vinfinity.models.unet3d.layers import (
    ACTIVATIONS,
    WIDENED,
    Conv2d,
    Downsample,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    blocks,
    frame_blocks,
    frames_first,
    frames_last,
    sinusoids,
)
from vinfinity.models.unet3d.norm import GroupNorm
from vinfinity.models.unet3d.spatial import SpatialTransformer
from vinfinity.models.unet3d.temporal import TemporalConvLayer, TemporalTransformer
from vinfinity.parallel.context import TemporalContext

DOWN_BLOCKS = {"CrossAttnDownBlock3D": True, "DownBlock3D": False}
DEVICE = DeviceStore()
KINDS = 64  # of layers with the same code, which differ in their widths
UP_BLOCKS = {"CrossAttnUpBlock3D": True, "UpBlock3D": False}


@dataclass(frozen=True)
class UNetConfig:
    """The architecture, with the names of a diffusers config.json.

    attention_head_dim is the width of a head (diffusers' own naming is the other way round, see its source).
    fps_cond: an embedding of the frame rate is added to the time embedding (VideoCrafter2).
    Raises ValueError for an architecture that this UNet is not.
    """

    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock3D",) * 3, "DownBlock3D")
    up_block_types: tuple[str, ...] = ("UpBlock3D", *("CrossAttnUpBlock3D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64
    time_cond_proj_dim: int | None = None
    fps_cond: bool = False
    sample_size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name, kinds in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            types = getattr(self, name)
            if len(types) != levels:
                raise ValueError(f"{name}: {len(types)} blocks for {levels} block_out_channels")
            unknown = [kind for kind in types if kind not in kinds]
            if unknown:
                raise ValueError(f"{name}: {unknown[0]!r} is not one of {', '.join(kinds)}")
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn: {self.act_fn!r} is not one of {', '.join(ACTIVATIONS)}")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels: {channels} is no multiple of {self.norm_num_groups} norm groups"
                )
            if channels < self.attention_head_dim:
                raise ValueError(
                    f"attention_head_dim: {self.attention_head_dim} is more than {channels} channels"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "UNetConfig":
        """From a parsed config.json; what this UNet does not have is refused unless it is off."""
        known = {field.name for field in fields(cls)}
        surplus = [key for key in values if not key.startswith("_") and key not in known]
        for key in surplus:
            if values[key] not in (None, False, "default"):
                raise ValueError(f"{key}: {values[key]!r} is not supported by this UNet")
        chosen: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in known
        }
        if isinstance(widths := chosen.get("attention_head_dim"), tuple):
            if len(set(widths)) != 1:
                raise ValueError(f"attention_head_dim: {widths} has more than one width")
            chosen["attention_head_dim"] = widths[0]
        return cls(**chosen)


@dataclass
class DeepFeatures:
    """What enters the outermost levels of the way up, kept over several steps (DeepCache, Ma et al. 2024, section 3.2).

    depth: levels that run in every step, from the outermost. renew: whether the next call runs the whole network and
    keeps its features anew; it must before the first that does not.
    """

    depth: int
    renew: bool = True
    kept: Frames | None = None

    def exchange(self, states: list[Frames], store: Store) -> None:
        """At the outermost levels: keeps the present state, the last of `states`, or puts the kept one in its place."""
        if self.renew:
            self.kept = store.keep(states[-1].read(slice(None)))
        else:
            assert self.kept is not None
            states.append(self.kept)


class UNetBlock(nn.Module):
    """One level: resnets, each followed by a temporal convolution and, with attention, a spatial and a temporal
    transformer. The middle of the UNet has the same parts in another order, see `MidBlock`.
    """

    def __init__(self, config: UNetConfig, ins: list[int], channels: int, *, attention: bool) -> None:
        super().__init__()
        groups, head_width = config.norm_num_groups, config.attention_head_dim
        self.resnets = nn.ModuleList([_resnet(config, width, channels) for width in ins])
        self.temp_convs = nn.ModuleList([TemporalConvLayer(channels, groups=groups) for _ in ins])
        self.has_attention = attention
        if attention:
            self.attentions = nn.ModuleList(
                SpatialTransformer(
                    channels, head_width=head_width, context=config.cross_attention_dim, groups=groups
                )
                for _ in ins
            )
            self.temp_attentions = nn.ModuleList(
                TemporalTransformer(
                    channels, heads=channels // head_width, head_width=head_width, groups=groups
                )
                for _ in ins
            )

    def layer(
        self, index: int, inputs: tuple[Frames, ...], time: Tensor, text: Tensor, ctx: TemporalContext
    ) -> Tensor:
        """The `index`-th layer of this level. inputs: (b, f, h, w, c) each, joined along the channels.

        Returns (b, f, h, w, channels): the resnet makes a new tensor, which the layers after it change in place.
        """
        x = _per_frame(self.resnets[index], inputs, time, limit=ctx.chunk_bytes)
        del inputs
        x = self.temp_convs[index](x, ctx)
        if self.has_attention:
            for some in frame_blocks(x, ctx.chunk_bytes // WIDENED):
                self.attentions[index](x[:, some], text)  # in place
            x = self.temp_attentions[index](x, ctx)
        return x


class DownBlock(UNetBlock):
    """A level on the way down; hands its states to the way up. diffusers' (CrossAttn)DownBlock3D."""

    def __init__(self, config: UNetConfig, channels: int, out: int, *, attention: bool, last: bool) -> None:
        super().__init__(config, [channels] + [out] * (config.layers_per_block - 1), out, attention=attention)
        self.downsamplers = (
            None if last else nn.ModuleList([Downsample(out, padding=config.downsample_padding)])
        )

    def forward(
        self,
        states: list[Frames],
        store: Store,
        time: Tensor,
        text: Tensor,
        ctx: TemporalContext,
        *,
        descend: bool,
    ) -> None:
        """Puts the states that the way up needs before the present one, which this level replaces; see `UpBlock`.

        descend: whether a deeper level follows, whose input is one of them.
        """
        for index in range(len(self.resnets)):
            _advance(states, self.layer(index, (states.pop(),), time, text, ctx), store)
        if self.downsamplers is not None and descend:
            _advance(states, _per_frame(self.downsamplers[0], (states.pop(),), limit=ctx.chunk_bytes), store)


class UpBlock(UNetBlock):
    """A level on the way up; each layer takes one state from the way down. diffusers' (CrossAttn)UpBlock3D."""

    def __init__(
        self, config: UNetConfig, skip: int, out: int, previous: int, *, attention: bool, last: bool
    ) -> None:
        layers = config.layers_per_block + 1
        ins = [(previous if i == 0 else out) + (skip if i == layers - 1 else out) for i in range(layers)]
        super().__init__(config, ins, out, attention=attention)
        self.upsamplers = None if last else nn.ModuleList([Upsample(out)])

    def forward(self, states: list[Frames], time: Tensor, text: Tensor, ctx: TemporalContext) -> None:
        """states: (b, f, h, w, c) each, those of the way down and, last, the present one, which this level replaces.

        Nothing but the list holds them, so that what a layer has read is free for the layers after it.
        """
        for index in range(len(self.resnets)):
            states.append(Held(self.layer(index, (states.pop(), states.pop()), time, text, ctx)))
        if self.upsamplers is not None:
            size = tuple(states[-2].shape[2:4])
            states.append(Held(_per_frame(self.upsamplers[0], (states.pop(),), size, limit=ctx.chunk_bytes)))


class MidBlock(UNetBlock):
    """The lowest level: resnet, temporal convolution, both transformers, resnet, temporal convolution."""

    def __init__(self, config: UNetConfig) -> None:
        channels = config.block_out_channels[-1]
        super().__init__(config, [channels], channels, attention=True)
        scale = config.mid_block_scale_factor
        self.resnets = nn.ModuleList([_resnet(config, channels, channels, out_scale=scale) for _ in range(2)])
        self.temp_convs.append(TemporalConvLayer(channels, groups=config.norm_num_groups))

    def forward(self, x: Tensor, time: Tensor, text: Tensor, ctx: TemporalContext) -> Tensor:
        """x: (b, f, h, w, c). Returns the same shape."""
        x = self.layer(0, (Held(x),), time, text, ctx)
        x = _per_frame(self.resnets[1], (Held(x),), time, limit=ctx.chunk_bytes)
        return self.temp_convs[1](x, ctx)


class UNet(nn.Module):
    """Predicts the noise (or v) of a noisy video. Parameter names are those of diffusers' UNet3DConditionModel."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        groups, width = config.norm_num_groups, widths[0]
        self.conv_in = Conv2d(config.in_channels, width, 3, padding=1)
        self.time_embedding = TimestepEmbedding(
            width, 4 * width, activation=config.act_fn, condition=config.time_cond_proj_dim
        )
        self.fps_embedding = (
            TimestepEmbedding(width, 4 * width, activation=config.act_fn) if config.fps_cond else None
        )
        self.transformer_in = TemporalTransformer(
            width, heads=8, head_width=config.attention_head_dim, groups=groups
        )
        levels = len(widths)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                config, widths[max(i - 1, 0)], widths[i], attention=DOWN_BLOCKS[kind], last=i == levels - 1
            )
            for i, kind in enumerate(config.down_block_types)
        )
        self.mid_block = MidBlock(config)
        upwards = widths[::-1]
        self.up_blocks = nn.ModuleList(
            UpBlock(
                config,
                upwards[min(i + 1, levels - 1)],
                upwards[i],
                upwards[max(i - 1, 0)],
                attention=UP_BLOCKS[kind],
                last=i == levels - 1,
            )
            for i, kind in enumerate(config.up_block_types)
        )
        self.conv_norm_out = GroupNorm(groups, width, eps=config.norm_eps)
        self.conv_out = Conv2d(width, config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        ctx: TemporalContext,
        *,
        fps: Tensor | None = None,
        condition: Tensor | None = None,
        store: Store = DEVICE,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """One prediction for this rank's frames.

        x: (b, in_channels, f, h, w). t: (1,) the training timestep. text: (b, t, cross_attention_dim). fps: (1,) frames
        per second, for models with an fps embedding. condition: (1, time_cond_proj_dim), for models that have one.
        store: where skip connections and deep features wait. deep: the features of an earlier step, which this one uses
        where it does not renew them. Returns (b, out_channels, f, h, w).
        """
        time = self._time(t, fps, condition).to(x.dtype)
        frames = rearrange(x, "b c f h w -> b f h w c").contiguous()
        hidden = self.transformer_in(_per_frame(self.conv_in, (Held(frames),), limit=ctx.chunk_bytes), ctx)
        shallow = deep is not None and not deep.renew
        if deep is not None and deep.renew:
            deep.kept = None  # not held beside those that take their place
        levels = deep.depth if deep is not None and shallow else len(self.down_blocks)
        states: list[Frames] = []
        _advance(states, hidden, store)
        del hidden
        for level, down in enumerate(self.down_blocks[:levels], start=1):
            down(states, store, time, text, ctx, descend=level < levels)
        if shallow:
            states.pop()
        else:
            states.append(Held(self.mid_block(states.pop().read(slice(None)), time, text, ctx)))
        for level, up in zip(range(levels, 0, -1), self.up_blocks[-levels:], strict=True):
            if deep is not None and level == deep.depth:
                deep.exchange(states, store)
            up(states, time, text, ctx)
        frames = _per_frame(self.leave, (states.pop(),), limit=ctx.chunk_bytes)
        return rearrange(frames, "b f h w c -> b c f h w")

    def leave(self, x: Tensor) -> Tensor:
        """The last norm and convolution. x: (b·f, c, h, w). Returns (b·f, out_channels, h, w)."""
        return self.conv_out(F.silu(self.conv_norm_out(x), inplace=True))

    def _time(self, t: Tensor, fps: Tensor | None, condition: Tensor | None) -> Tensor:
        """The time embedding, (1, 4 * width), with the frame rate's added where the model has one.

        In the type of its own weights, which are fp32 in half-precision runs too.
        """
        width, dtype = self.config.block_out_channels[0], self.time_embedding.linear_1.weight.dtype
        condition = None if condition is None else condition.to(dtype)
        time = self.time_embedding(sinusoids(t, width).to(dtype), condition)
        if (fps is None) == self.config.fps_cond:
            raise ValueError(f"this model {'needs' if self.config.fps_cond else 'takes no'} frame rate (fps)")
        if self.fps_embedding is not None and fps is not None:
            time = time + self.fps_embedding(sinusoids(fps, width).to(dtype))
        return time


def compile_blocks(unet: UNet) -> None:
    """Compiles the layers that know nothing of time, each when it is first called. Temporal layers, which wait for
    other ranks, stay as they are.
    """
    torch._dynamo.config.recompile_limit = (
        KINDS  # a layer is compiled once for each width; beyond 8 it would not be
    )
    for module in unet.modules():
        if isinstance(module, ResnetBlock | SpatialTransformer | Downsample | Upsample):
            module.compile(dynamic=True)


def _resnet(config: UNetConfig, channels: int, out: int, *, out_scale: float = 1.0) -> ResnetBlock:
    return ResnetBlock(
        channels,
        out,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        time_channels=4 * config.block_out_channels[0],
        activation=config.act_fn,
        out_scale=out_scale,
    )


def _advance(states: list[Frames], x: Tensor, store: Store) -> None:
    """Makes x the present state, and keeps it for the way up. x: (b, f, h, w, c)."""
    states += [store.keep(x), Held(x)]


def _per_frame(layer: Callable[..., Tensor], inputs: tuple[Frames, ...], *args: object, limit: int) -> Tensor:
    """A layer that knows nothing of time, over stretches of frames.

    inputs: (b, f, h, w, c) each, joined along the channels a stretch at a time. limit: bytes of a stretch.
    Returns (b, f, h', w', c').
    """
    b, f, *rest = inputs[0].shape
    out: Tensor | None = None
    for some in blocks(f, b * math.prod(rest) * inputs[0].dtype.itemsize, limit):
        parts = [x.read(some) for x in inputs]
        frames = frames_first(torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0])
        done = frames_last(layer(frames, *args), b)
        if done.shape[1] == f:
            return done
        if out is None:
            out = done.new_empty(b, f, *done.shape[2:])
        out[:, some] = done
    assert out is not None
    return out
