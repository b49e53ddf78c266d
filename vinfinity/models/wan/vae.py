"""AutoencoderKLWan, the causal video autoencoder of Wan 2.1: latents to frames and back, in order.

Dims: c latent channels, h w latent height and width, f frames of a latent frame (1 for the first of a video, then 4),
H W picture height and width. Frames are (3, H, W) in [-1, 1]. Each frame depends on earlier frames, never on later
ones: memory does not grow with the video. Parameters are named as in diffusers' AutoencoderKLWan.
"""

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from vinfinity.models.wan.causal import (
    LAYOUT,
    AttentionBlock,
    CausalConv3d,
    Downsample,
    FrameCache,
    ResidualBlock,
    RMSNorm,
    Upsample,
)
from vinfinity.models.wan.vae_config import LevelLayout, WanVAEConfig
from vinfinity.models.wan.warm_up import Step, WarmUp, latent_of, reach_of


class MidBlock(nn.Module):
    """Resnet, self-attention, resnet at the latent's resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The layers in the order in which they run."""
        return self.resnets[0], self.attentions[0], self.resnets[1]


class Encoder(nn.Module):
    """Maps frames to the mean and log variance of their latents."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = config.encoder_widths
        self.conv_in = CausalConv3d(config.in_channels, config.base_dim)
        layers: list[nn.Module] = []
        channels = config.base_dim
        for i, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers.append(ResidualBlock(channels, width))
                channels = width
            if i < len(widths) - 1:
                layers.append(Downsample(width, time=config.temperal_downsample[i]))
        self.down_blocks = nn.ModuleList(layers)
        self.mid_block = MidBlock(channels)
        self.norm_out = RMSNorm(channels)
        self.conv_out = CausalConv3d(channels, 2 * config.z_dim)

    def first(self, latent: int) -> int:
        """Return the first latent frame whose pictures the encoder must see for exact latents from `latent` on.

        The first layers do most of the work and reach back furthest. So, unlike the decoder's layers, none can start
        later.
        """
        needed, frames = latent, 1
        for layer in reversed([self.conv_in, *self.down_blocks, *self.mid_block.layers, self.conv_out]):
            if isinstance(layer, Downsample) and layer.time_conv is not None:
                # output frame j > 0 is made from the input frames 2 j - 2 to 2 j
                needed, frames = 2 * needed - 2, 2 * frames
            needed = max(0, needed - reach_of(layer))
        return latent_of(needed, frames)

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """Encode x (1, 3, f, H, W) to (1, 2 c, 1, h, w).

        Up to the first layer that halves the frames, this runs frame by frame, which takes half the memory.
        """
        layers = [*self.down_blocks, *self.mid_block.layers]
        halving = (at for at, layer in enumerate(layers) if isinstance(layer, Downsample) and layer.time_conv)
        split = next(halving, len(layers))
        frames = []
        for frame in x.split(1, dim=2):
            hidden = self.conv_in.after(frame, cache)
            for layer in layers[:split]:
                hidden = layer(hidden, cache)
            frames.append(hidden)
        x = torch.cat(frames, dim=2)
        del frames, hidden
        for layer in layers[split:]:
            x = layer(x, cache)
        return self.conv_out.after(x, cache, norm=self.norm_out)


class UpBlock(nn.Module):
    """The resnets of one level, then its change of resolution."""

    def __init__(self, level: LevelLayout, *, layers: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResidualBlock(level.width if i else level.channels, level.width) for i in range(layers)]
        )
        self.upsamplers: nn.ModuleList | None = None
        if level.upsampled is not None:
            self.upsamplers = nn.ModuleList([Upsample(level.width, level.upsampled, time=level.doubles)])


class Decoder(nn.Module):
    """Maps latents to frames."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.levels = config.levels
        first, last = self.levels[0], self.levels[-1]
        self.conv_in = CausalConv3d(config.z_dim, first.channels)
        self.mid_block = MidBlock(first.channels)
        self.up_blocks = nn.ModuleList(
            [UpBlock(level, layers=config.num_res_blocks + 1) for level in self.levels]
        )
        self.norm_out = RMSNorm(last.width)
        self.conv_out = CausalConv3d(last.width, config.out_channels)

    def steps(self) -> tuple[Step, ...]:
        """List the steps that decode a latent frame, in order."""
        first, last = self.levels[0], self.levels[-1]
        steps = [Step.of(self.conv_in, self.conv_in.after, first)]
        steps += [Step.of(layer, layer, first) for layer in self.mid_block.layers]
        for level, block in zip(self.levels, self.up_blocks, strict=True):
            assert isinstance(block, UpBlock)
            steps += [Step.of(layer, layer, level) for layer in (*block.resnets, *(block.upsamplers or ()))]
        return (*steps, Step.of(self.conv_out, self._out, last))

    def _out(self, x: Tensor, cache: FrameCache) -> Tensor:
        return self.conv_out.after(x, cache, norm=self.norm_out)


class AutoencoderKLWan(nn.Module):
    """Encodes frames to latents and decodes them: 8 times smaller on each side, and 4 times fewer in time."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        channels = config.z_dim
        self.quant_conv = CausalConv3d(2 * channels, 2 * channels, kernel=(1, 1, 1))
        self.post_quant_conv = CausalConv3d(channels, channels, kernel=(1, 1, 1))

    @property
    def warm_up(self) -> WarmUp:
        """What a decoder that starts in the middle of a video must run before its first frame."""
        return WarmUp(self.decoder.steps(), self.config.time_downscale)

    @property
    def restart_cost(self) -> float:
        """The time it takes to start in the middle of a video, in latent frames."""
        return self.warm_up.cost

    def stream(self, start: int = 0) -> "DecoderStream":
        """Start to decode at the latent frame `start`, exactly as if the whole video were decoded."""
        return DecoderStream(self, start)

    def decode_frames(self, latents: Iterable[Tensor], *, start: int = 0) -> Iterator[Tensor]:
        """Yield the frames (3, H, W) from the latent frame `start` on, in order; none of them stays in memory.

        latents: (c, h, w) each, as the diffusion model leaves them, in order from `stream(start).first` on.
        """
        stream = self.stream(start)
        for latent in latents:
            for frames in stream.decode(latent[None]):
                yield from frames

    def encoder_stream(self, start: int = 0) -> "EncoderStream":
        """Start to encode at the latent frame `start`, exactly as if the whole video were encoded."""
        return EncoderStream(self, start)

    def moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents' channels, (c, 1, 1). like: gives type and device."""
        mean, deviation = (
            torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        return mean, deviation


class EncoderStream:
    """Encodes a video from the latent frame `start` on: see `EncoderStream` in models/decoder.py."""

    def __init__(self, autoencoder: AutoencoderKLWan, start: int) -> None:
        self._autoencoder = autoencoder
        self.first = self._next = autoencoder.encoder.first(start)
        self._cache = FrameCache()

    def encode(self, pictures: Tensor) -> Tensor:
        """Return the next latent frame (1, c, h, w), as the diffusion model sees it: the mean of the posterior.

        pictures: as for `posterior`.
        """
        mean, _ = self.posterior(pictures)
        offset, scale = self._autoencoder.moments(mean)
        return ((mean - offset) / scale)[None]

    def posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the next latent frame, each (c, h, w), not normalised.

        pictures: (f, 3, H, W), the frames of this latent frame; H and W are multiples of 8. Raises ValueError for
        another number of frames.
        """
        frames = self._autoencoder.config.time_downscale if self._next else 1
        if len(pictures) != frames:
            raise ValueError(f"frames: got {len(pictures)} for latent frame {self._next}, which has {frames}")
        self._cache.first = self._next == 0
        moments = self._autoencoder.quant_conv(
            self._autoencoder.encoder(pictures.transpose(0, 1)[None], self._cache)
        )
        self._next += 1
        mean, log_variance = cast(Tensor, moments)[0, :, 0].chunk(2)
        return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))


class DecoderStream:
    """Decodes a video from the latent frame `start` on: see `DecoderStream` in models/decoder.py.

    first: the latent frame that the first call must pass. Calls before the one for `start` yield no frames: they run
    what later frames depend on, and each layer starts as late as possible.
    """

    def __init__(self, autoencoder: AutoencoderKLWan, start: int) -> None:
        self._autoencoder, self._start = autoencoder, start
        self._steps = autoencoder.decoder.steps()
        self._starts = autoencoder.warm_up.starts(start)
        self.first = self._next = self._starts[0]
        self._cache = FrameCache()
        self._moments: tuple[Tensor, Tensor] | None = None

    def frames(self, count: int) -> int:
        """Return how many frames the next `count` latent frames decode to."""
        latents = range(max(self._next, self._start), self._next + count)
        scale = self._autoencoder.config.time_downscale
        return sum(scale if latent else 1 for latent in latents)

    @property
    def bytes(self) -> int:
        """Bytes that the stream holds between two calls."""
        return self._cache.bytes

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the frames of the next latent frames, (1, 3, H, W) at a time, about [-1, 1]; none before `start`.

        latents: (b, c, h, w), as the diffusion model leaves them. Take all frames before the next call.
        """
        if self._moments is None:
            self._moments = self._autoencoder.moments(latents)
        mean, deviation = self._moments
        for latent in latents.split(1):
            x = torch.addcmul(mean, latent, deviation)[:, :, None].contiguous(memory_format=LAYOUT)
            self._cache.first = self._next == 0
            yield from self._run(self._autoencoder.post_quant_conv(x), 0)
            self._next += 1

    def _run(self, x: Tensor, begin: int) -> Iterator[Tensor]:
        """Run the steps from number `begin` on; after one that doubles the frames, frame by frame, to save memory."""
        for number, step in enumerate(self._steps[begin:], start=begin):
            if self._next < self._starts[number]:
                return
            x = step.run(x, self._cache)
            if step.doubles and x.shape[2] > 1:
                for frame in x.split(1, dim=2):
                    yield from self._run(frame, number + 1)
                return
        if self._next >= self._start:
            yield x[:, :, 0]
