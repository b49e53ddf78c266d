"""The architecture of the causal autoencoder, with the names of its published config.json. Loads no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vinfinity.system.fields import above_zero, known_fields

# The moments of Wan 2.1's latents, one number per channel.
# fmt: off
LATENT_MEANS = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_DEVIATIONS = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                     3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
# fmt: on

# Number of earlier frames that a convolution with kernel 3 sees.
EARLIER_FRAMES = 2


@dataclass(frozen=True)
class LevelLayout:
    """One resolution of the decoder.

    channels: channels of the input. width: channels of the resnets. upsampled: channels after the upsampler; None for
    the last level. doubles: whether the upsampler also doubles the frames. frames: input frames per latent frame.
    area: positions per pixel of the picture.
    """

    channels: int
    width: int
    upsampled: int | None
    doubles: bool
    frames: int
    area: float


@dataclass(frozen=True)
class WanVAEConfig:
    """AutoencoderKLWan, with the names of a diffusers config.json.

    base_dim, decoder_base_dim: numbers of channels that `dim_mult` multiplies, level by level. temperal_downsample
    (spelled so in the files): whether the encoder halves the frames after each level. latents_mean, latents_std: the
    diffusion model sees (latent - mean) / std.

    Raises ValueError for an architecture that this autoencoder does not have.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = LATENT_MEANS
    latents_std: tuple[float, ...] = above_zero(LATENT_DEVIATIONS)
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    scale_factor_temporal: int | None = None
    scale_factor_spatial: int | None = None

    def __post_init__(self) -> None:
        # this entry distinguishes Wan 2.2's autoencoder
        if self.is_residual:
            raise ValueError("is_residual: true is the autoencoder of Wan 2.2, which is not supported")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) != 3:
                raise ValueError(f"{name}: {getattr(self, name)} is not 3")
        if self.patch_size not in (None, 1):
            raise ValueError(f"patch_size: {self.patch_size} is not supported")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            counts = f"{len(self.temperal_downsample)} entries for {len(self.dim_mult)} in dim_mult"
            raise ValueError(f"temperal_downsample: {counts}; it needs one fewer")
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name}: {len(getattr(self, name))} numbers for {self.z_dim} channels")
        for name, own in (
            ("scale_factor_temporal", self.time_downscale),
            ("scale_factor_spatial", self.downscale),
        ):
            if getattr(self, name) not in (None, own):
                raise ValueError(f"{name}: {getattr(self, name)}, but its levels make it {own}")

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.z_dim

    @property
    def downscale(self) -> int:
        """Pixels per latent position, along height and along width."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def time_downscale(self) -> int:
        """Frames per latent frame; the first frame of a video has a latent frame of its own."""
        return int(2 ** sum(self.temperal_downsample))

    @property
    def causal(self) -> bool:
        """Whether frames depend on earlier ones."""
        return True

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of the encoder's levels."""
        return tuple(self.base_dim * factor for factor in self.dim_mult)

    @property
    def levels(self) -> tuple[LevelLayout, ...]:
        """The decoder's levels, from the latent's resolution to the picture's."""
        base = self.decoder_base_dim or self.base_dim
        widths = [base * factor for factor in reversed(self.dim_mult)]
        doubles = [*reversed(self.temperal_downsample), False]
        levels: list[LevelLayout] = []
        channels, frames = widths[0], 1
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            area = 1 / 4 ** (len(widths) - 1 - i)
            levels.append(
                LevelLayout(channels, width, None if last else width // 2, doubles[i], frames, area)
            )
            # the upsampler halves the channels
            channels, frames = width // 2, frames * (1 + doubles[i])
        return tuple(levels)

    @property
    def kept_channels(self) -> int:
        """Channels of the earlier frames that the decoder keeps, counted at the picture's resolution."""
        first, last = self.levels[0], self.levels[-1]
        # conv_in, the resnets in the middle, and conv_out
        kept = first.area * (self.z_dim + 4 * first.channels) + last.width
        for level in self.levels:
            # the convolutions of the resnets, and the upsampler's convolution over time
            kept += level.area * (
                level.channels + (2 * self.num_res_blocks + 1 + level.doubles) * level.width
            )
        return math.ceil(EARLIER_FRAMES * kept)

    @property
    def peak_channels(self) -> int:
        """The most channels, counted at the picture's resolution, that are alive while a latent frame is decoded.

        These are the frames that are kept, and the working set of the layer that needs the most.
        """
        most, waiting = 0.0, 0.0
        for level in self.levels:
            # at the second convolution of a resnet: the input, what it reads and returns, and what that is made from
            working = max(level.channels + 5 * level.width, 4 * level.channels + level.width)
            if level.upsampled is not None:
                frames = 1 + level.doubles
                enlarged = 4 * frames * level.width
                working = max(
                    working,
                    level.width + enlarged + 4 * frames * level.upsampled,
                    level.width + enlarged + level.doubles * frames * level.width,
                )
            most = max(most, waiting + level.area * working)
            if level.doubles:
                # both frames, since they are decoded in turn
                waiting += 2 * 4 * level.area * (level.upsampled or 0)
        return math.ceil(self.kept_channels + most)

    @property
    def widest_channels(self) -> int:
        """The most channels, counted at the picture's resolution, of one tensor while a latent frame is decoded.

        This is a frame with the two before it, or an upsampled frame.
        """
        return math.ceil(
            max(
                level.area
                * max(
                    (1 + EARLIER_FRAMES) * max(level.channels, level.width),
                    4 * (1 + level.doubles) * level.width if level.upsampled else 0,
                )
                for level in self.levels
            )
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "WanVAEConfig":
        """Read a parsed config.json. Raises ValueError for features that this autoencoder does not have."""
        return cls(**known_fields(cls, values))
