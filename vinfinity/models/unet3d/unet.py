"""The 3-D UNet of ModelScope, Zeroscope and VideoCrafter2 (UNet3DConditionModel in diffusers).

Dims: b batch (guidance branches), f this rank's frames, h w latent height and width, c channels, t text tokens.
Latents are (b, c, f, h, w); hidden states inside are (b, f, h, w, c), see layers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.frame_text import FrameText
from vinfinity.models.kernels import sinusoids
from vinfinity.models.offload import DeviceStore, Frames, OnDevice, Store
from vinfinity.models.unet3d.configs import DOWN_BLOCKS, FIRST_ATTENTION_HEADS, UP_BLOCKS, UNetConfig
from vinfinity.models.unet3d.layers import (
    FEED_FORWARD_MEMORY,
    Conv2d,
    Downsample,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    frame_pieces,
    frames_first,
    frames_last,
    pad_piece,
    unpad_piece,
)
from vinfinity.models.unet3d.norm import GroupNorm
from vinfinity.models.unet3d.spatial import SpatialTransformer
from vinfinity.models.unet3d.temporal import TemporalConvLayer, TemporalTransformer
from vinfinity.parallel.context import TemporalContext
from vinfinity.parallel.groups import Piece

DEVICE_STORE = DeviceStore()

# Number of variants that torch.compile may make of a layer's code: one per width, where its default limit is 8.
COMPILED_VARIANTS = 64


@dataclass
class DeepFeatures:
    """The input of the outermost levels on the upward path, reused over steps (DeepCache, Ma et al. 2024, section 3.2).

    depth: number of levels that run in every step, counted from the outermost. renew: whether the next call runs the
    whole network and stores its features; the first call must. stored: the features; None before the first call.
    """

    depth: int
    renew: bool = True
    stored: Frames | None = None

    def store_or_reuse(self, states: list[Frames], store: Store) -> None:
        """Store the current state, the last of `states`, or append the stored one, before the outermost levels run."""
        if self.renew:
            self.stored = store.keep(states[-1].read(slice(None)))
        else:
            assert self.stored is not None
            states.append(self.stored)


class UNetBlock(nn.Module):
    """One level: resnets, each followed by a temporal convolution and, with attention, by two transformers.

    The first transformer is spatial, the second temporal. The middle block has these parts in another order, see
    `MidBlock`.
    """

    def __init__(self, config: UNetConfig, ins: list[int], channels: int, *, attention: bool) -> None:
        super().__init__()
        groups, head_width = config.norm_num_groups, config.attention_head_dim
        self.channels = channels
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
        self, index: int, inputs: tuple[Frames, ...], time: Tensor, text: FrameText, ctx: TemporalContext
    ) -> Tensor:
        """Run the `index`-th layer of this level. inputs: (b, f, h, w, c) each, concatenated along the channels.

        Returns (b, f, h, w, channels): the resnet's output is a new tensor, which the other layers change in place.
        """
        x = self._resnet(index, inputs, time, ctx)
        del inputs
        x = self.temp_convs[index](x, ctx)
        if self.has_attention:
            for piece in frame_pieces(x, ctx, memory_factor=FEED_FORWARD_MEMORY):
                frames = x[:, piece.own]
                # the transformer works in place, but a padded piece is a copy
                attended = self.attentions[index](
                    pad_piece(frames, piece), text.runs(ctx.grouping.frames_of(piece))
                )
                if piece.before or piece.after:
                    frames.copy_(unpad_piece(attended, piece))
            x = self.temp_attentions[index](x, ctx)
        return x

    def _resnet(self, index: int, inputs: tuple[Frames, ...], time: Tensor, ctx: TemporalContext) -> Tensor:
        return _per_frame(self.resnets[index], inputs, time, ctx=ctx, channels=self.channels)


class DownBlock(UNetBlock):
    """A level on the downward path. (CrossAttn)DownBlock3D in diffusers."""

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
        text: FrameText,
        ctx: TemporalContext,
        *,
        descend: bool,
    ) -> None:
        """Replace the current state, the last of `states`, and insert this level's skip connections before it.

        descend: whether a deeper level follows; its input is a skip connection as well.
        """
        for index in range(len(self.resnets)):
            _advance(states, self.layer(index, (states.pop(),), time, text, ctx), store)
        if self.downsamplers is not None and descend:
            _advance(states, _per_frame(self.downsamplers[0], (states.pop(),), ctx=ctx), store)


class UpBlock(UNetBlock):
    """A level on the upward path; each layer takes one skip connection. (CrossAttn)UpBlock3D in diffusers."""

    def __init__(
        self, config: UNetConfig, skip: int, out: int, previous: int, *, attention: bool, last: bool
    ) -> None:
        layers = config.layers_per_block + 1
        ins = [(previous if i == 0 else out) + (skip if i == layers - 1 else out) for i in range(layers)]
        super().__init__(config, ins, out, attention=attention)
        self.upsamplers = None if last else nn.ModuleList([Upsample(out)])

    def forward(self, states: list[Frames], time: Tensor, text: FrameText, ctx: TemporalContext) -> None:
        """Replace the current state, the last of `states`, and take this level's skip connections from before it.

        states: (b, f, h, w, c) each. Only the list refers to them, so that memory is freed as layers read them.
        """
        for index in range(len(self.resnets)):
            states.append(OnDevice(self.layer(index, (states.pop(), states.pop()), time, text, ctx)))
        if self.upsamplers is not None:
            size = tuple(states[-2].shape[2:4])
            states.append(OnDevice(_per_frame(self.upsamplers[0], (states.pop(),), size, ctx=ctx)))


class MidBlock(UNetBlock):
    """The middle block: resnet, temporal convolution, both transformers, resnet, temporal convolution."""

    def __init__(self, config: UNetConfig) -> None:
        channels = config.block_out_channels[-1]
        super().__init__(config, [channels], channels, attention=True)
        scale = config.mid_block_scale_factor
        self.resnets = nn.ModuleList([_resnet(config, channels, channels, out_scale=scale) for _ in range(2)])
        self.temp_convs.append(TemporalConvLayer(channels, groups=config.norm_num_groups))

    def forward(self, x: Tensor, time: Tensor, text: FrameText, ctx: TemporalContext) -> Tensor:
        """Transform x (b, f, h, w, c) to the same shape."""
        x = self.layer(0, (OnDevice(x),), time, text, ctx)
        x = self._resnet(1, (OnDevice(x),), time, ctx)
        return self.temp_convs[1](x, ctx)


class UNet(nn.Module):
    """Predicts the noise (or v) of a noisy video. Parameters are named as in diffusers' UNet3DConditionModel."""

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
            width, heads=FIRST_ATTENTION_HEADS, head_width=config.attention_head_dim, groups=groups
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
        text: FrameText,
        ctx: TemporalContext,
        *,
        fps: Tensor | None = None,
        condition: Tensor | None = None,
        store: Store = DEVICE_STORE,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """Predict this rank's frames once.

        x: (b, in_channels, f, h, w). t: (1,), the training timestep. text: states of cross_attention_dim channels. fps:
        (1,), frames per second, for models with an fps embedding. condition: (1, time_cond_proj_dim), for models that
        have one. store: where skip connections and deep features wait. deep: features of an earlier step to reuse, or
        to renew. Returns (b, out_channels, f, h, w). Raises ValueError if fps or condition do not suit the model.
        """
        time = self._time(t, fps, condition).to(x.dtype)
        frames = rearrange(x, "b c f h w -> b f h w c").contiguous()
        hidden = self.transformer_in(_per_frame(self.conv_in, (OnDevice(frames),), ctx=ctx), ctx)
        shallow = deep is not None and not deep.renew
        if deep is not None and deep.renew:
            # free the memory of the old features before the new ones are computed
            deep.stored = None
        levels = deep.depth if deep is not None and shallow else len(self.down_blocks)
        states: list[Frames] = []
        _advance(states, hidden, store)
        del hidden
        for level, down in enumerate(self.down_blocks[:levels], start=1):
            down(states, store, time, text, ctx, descend=level < levels)
        if shallow:
            states.pop()
        else:
            states.append(OnDevice(self.mid_block(states.pop().read(slice(None)), time, text, ctx)))
        for level, up in zip(range(levels, 0, -1), self.up_blocks[-levels:], strict=True):
            if deep is not None and level == deep.depth:
                deep.store_or_reuse(states, store)
            up(states, time, text, ctx)
        frames = _per_frame(self.project_out, (states.pop(),), ctx=ctx)
        return rearrange(frames, "b f h w c -> b c f h w")

    def project_out(self, x: Tensor) -> Tensor:
        """Apply the last norm and convolution to x (b·f, c, h, w). Returns (b·f, out_channels, h, w)."""
        return self.conv_out(F.silu(self.conv_norm_out(x), inplace=True))

    def _time(self, t: Tensor, fps: Tensor | None, condition: Tensor | None) -> Tensor:
        """Embed the timestep and, for models that take it, the frame rate: (1, 4 * width).

        The result has the type of the embedding's weights, which stay in fp32 in half-precision runs.
        """
        width, dtype = self.config.block_out_channels[0], self.time_embedding.linear_1.weight.dtype
        condition = None if condition is None else condition.to(dtype)
        time = self.time_embedding(sinusoids(t, width).to(dtype), condition)
        if (fps is None) == self.config.fps_cond:
            raise ValueError(
                f"this model {'needs a' if self.config.fps_cond else 'takes no'} frame rate (fps)"
            )
        if self.fps_embedding is not None and fps is not None:
            time = time + self.fps_embedding(sinusoids(fps, width).to(dtype))
        return time


def compile_blocks(unet: UNet) -> None:
    """Compile the layers that work within a frame, each at its first call.

    Temporal layers wait for other ranks and are not compiled.
    """
    # torch before 2.6 has the older name
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, COMPILED_VARIANTS)
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
    """Make x (b, f, h, w, c) the current state, and store it as a skip connection."""
    states += [store.keep(x), OnDevice(x)]


def _per_frame(
    layer: Callable[..., Tensor],
    inputs: tuple[Frames, ...],
    *args: object,
    ctx: TemporalContext,
    channels: int | None = None,
) -> Tensor:
    """Apply a layer that works within each frame, one piece of the frames at a time.

    inputs: (b, f, h, w, c) each, concatenated along the channels piece by piece. channels: the output's channels, for
    layers that keep h and w and take an argument `out`. Returns (b, f, h', w', c').
    """
    b, f = inputs[0].shape[:2]
    pieces = frame_pieces(inputs[0], ctx)
    if len(pieces) == 1:
        pictures = _read_pictures(inputs, pieces[0], None)
        return unpad_piece(frames_last(layer(pictures, *args), b), pieces[0]).contiguous()
    out: Tensor | None = None
    for piece, next_piece in zip(pieces, [*pieces[1:], None], strict=True):
        pictures = _read_pictures(inputs, piece, next_piece)
        if channels is not None and b == 1 and not piece.before and not piece.after:
            # the layer writes its result where it belongs
            if out is None:
                out = pictures.new_empty(b, f, *pictures.shape[2:], channels)
            layer(pictures, *args, out=frames_first(out[:, piece.own]))
        else:
            computed = unpad_piece(frames_last(layer(pictures, *args), b), piece)
            if out is None:
                out = computed.new_empty(b, f, *computed.shape[2:])
            out[:, piece.own] = computed
    assert out is not None
    return out


def _read_pictures(inputs: tuple[Frames, ...], piece: Piece, next_piece: Piece | None) -> Tensor:
    """Read the frames of a piece from each input and join their channels: (b·f', c, h, w).

    next_piece: the piece that is read next, to fetch it meanwhile; None after the last one.
    """
    upcoming = None if next_piece is None else next_piece.own
    parts = [x.read(piece.own, then=upcoming) for x in inputs]
    joined = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    # of stored states, only the chunk that is read next and the one after it stay on the device
    del parts
    return frames_first(pad_piece(joined, piece))
