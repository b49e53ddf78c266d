"""The architectures of this family's networks, with the names of the published config.json files. Loads no torch.

Dims: c channels, h w height and width of a picture or its latent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vinfinity.system.fields import above_zero, from_zero, known_fields

ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
TEXT_ACTIVATIONS = ("quick_gelu", "gelu")

# The UNet's block types, and whether their layers have attention.
DOWN_BLOCKS = {"CrossAttnDownBlock3D": True, "DownBlock3D": False}
UP_BLOCKS = {"CrossAttnUpBlock3D": True, "UpBlock3D": False}

# Heads of the temporal transformer before the first level, a constant in the published code.
FIRST_ATTENTION_HEADS = 8

# The only block types that the autoencoder has.
VAE_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

# Settings of AutoencoderTiny that do not affect decoding.
TINY_IGNORED_ENTRIES = ("latent_magnitude", "latent_shift", "block_out_channels", "force_upcast")


@dataclass(frozen=True)
class UNetConfig:
    """The UNet, with the names of a diffusers config.json.

    attention_head_dim: width of a head. (diffusers' own code swaps the names for width and number, see its source.)
    fps_cond: whether an embedding of the frame rate is added to the time embedding, as in VideoCrafter2.
    time_cond_proj_dim: width of the guidance embedding that a distilled model takes as an input.

    Raises ValueError for an architecture that this UNet does not have.
    """

    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock3D",) * 3, "DownBlock3D")
    up_block_types: tuple[str, ...] = ("UpBlock3D", *("CrossAttnUpBlock3D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = from_zero(1)
    mid_block_scale_factor: float = above_zero(1.0)
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = above_zero(1e-5)
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64
    time_cond_proj_dim: int | None = None
    fps_cond: bool = False
    sample_size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            types = getattr(self, name)
            if len(types) != levels:
                raise ValueError(f"{name}: {len(types)} blocks for {levels} block_out_channels")
            unknown = [kind for kind in types if kind not in known]
            if unknown:
                raise ValueError(f"{name}: {unknown[0]!r} is not one of {', '.join(known)}")
        _check_activation("act_fn", self.act_fn, ACTIVATIONS)
        _check_groups(self.block_out_channels, self.norm_num_groups)
        for channels in self.block_out_channels:
            if channels < self.attention_head_dim:
                raise ValueError(
                    f"attention_head_dim: {self.attention_head_dim} is more than {channels} channels"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "UNetConfig":
        """Read a parsed config.json. Raises ValueError for features that this UNet does not have."""
        widths = values.get("attention_head_dim")
        if isinstance(widths, list | tuple):
            if not widths or any(width != widths[0] for width in widths):
                raise ValueError(f"attention_head_dim: {widths} is not a single width")
            values = {**values, "attention_head_dim": widths[0]}
        return cls(**known_fields(cls, values))


@dataclass(frozen=True)
class VAEConfig:
    """AutoencoderKL, with the names of a diffusers config.json.

    scaling_factor, shift_factor: the diffusion model sees (latent - shift) * scaling.

    Raises ValueError for an architecture that this autoencoder does not have.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    act_fn: str = "silu"
    scaling_factor: float = above_zero(0.18215)
    shift_factor: float | None = None
    force_upcast: bool = True
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    sample_size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_activation("act_fn", self.act_fn, ACTIVATIONS)
        _check_groups(self.block_out_channels, self.norm_num_groups)

    @property
    def downscale(self) -> int:
        """Pixels per latent position, along height and along width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def time_downscale(self) -> int:
        """Frames per latent frame."""
        return 1

    @property
    def causal(self) -> bool:
        """Whether frames depend on earlier ones."""
        return False

    @property
    def peak_channels(self) -> int:
        """The most channels, counted at the picture's resolution, that are alive at once while decoding.

        On a level that takes p channels and works with w, its input of p channels is alive throughout. The first
        resnet adds a norm and an activation of p channels each; the others add their input, hidden states, norm and
        activation of w channels each. Each level has a quarter of the positions of the next one.
        """
        widths = self.block_out_channels[::-1]
        peaks = [
            max(3 * p, p + 4 * w) / 4 ** (len(widths) - 1 - i)
            for i, (p, w) in enumerate(zip((widths[0], *widths), widths, strict=False))
        ]
        return math.ceil(max(peaks))

    @property
    def widest_channels(self) -> int:
        """The most channels, counted at the picture's resolution, of one tensor while decoding.

        A level's input is the upsampled output of the previous level.
        """
        widths = self.block_out_channels[::-1]
        return math.ceil(
            max(
                max(p, w) / 4 ** (len(widths) - 1 - i)
                for i, (p, w) in enumerate(zip((widths[0], *widths), widths, strict=False))
            )
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "VAEConfig":
        """Read a parsed config.json. Raises ValueError for features that this autoencoder does not have."""
        for key, only in VAE_BLOCKS.items():
            others = set(values.get(key) or []) - {only}  # type: ignore[call-overload]
            if others:
                raise ValueError(f"{key}: {others.pop()!r} is not {only}")
        return cls(**known_fields(cls, values, ignore=VAE_BLOCKS))


@dataclass(frozen=True)
class TinyConfig:
    """AutoencoderTiny, with the names of a diffusers config.json.

    scaling_factor, shift_factor: the diffusion model sees (latent - shift) * scaling.

    Raises ValueError for an architecture that this autoencoder does not have.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    upsampling_scaling_factor: int = 2
    upsample_fn: str = "nearest"
    act_fn: str = "relu"
    scaling_factor: float = above_zero(1.0)
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        _check_activation("act_fn", self.act_fn, ACTIVATIONS)
        if self.upsample_fn != "nearest":
            raise ValueError(f"upsample_fn: {self.upsample_fn!r} is not nearest")
        for side in ("encoder", "decoder"):
            widths, counts = getattr(self, f"{side}_block_out_channels"), getattr(self, f"num_{side}_blocks")
            if not widths or len(widths) != len(counts):
                raise ValueError(
                    f"num_{side}_blocks: {list(counts)} is not one number for each of {side}_block_out_channels"
                )

    @property
    def downscale(self) -> int:
        """Pixels per latent position, along height and along width."""
        return self.upsampling_scaling_factor ** (len(self.decoder_block_out_channels) - 1)

    @property
    def time_downscale(self) -> int:
        """Frames per latent frame."""
        return 1

    @property
    def causal(self) -> bool:
        """Whether frames depend on earlier ones."""
        return False

    @property
    def peak_channels(self) -> int:
        """The most channels, counted at the picture's resolution, that are alive at once while decoding.

        These are a block's input and two states inside the block.
        """
        return 3 * self.decoder_block_out_channels[-1]

    @property
    def widest_channels(self) -> int:
        """The most channels, counted at the picture's resolution, of one tensor while decoding.

        The last block's input is the upsampled output of the previous block.
        """
        return max(self.decoder_block_out_channels[-2:])

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TinyConfig":
        """Read a parsed config.json. Raises ValueError for features that this autoencoder does not have."""
        return cls(**known_fields(cls, values, ignore=TINY_IGNORED_ENTRIES))


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text encoder, with the names of a transformers config.json.

    num_hidden_layers: number of layers that run. A model that uses the penultimate layer of OpenCLIP ViT-H has 23 of
    its 24 layers.

    Raises ValueError for an architecture that this encoder does not have.
    """

    vocab_size: int = 49408
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 23
    num_attention_heads: int = 16
    max_position_embeddings: int = 77
    hidden_act: str = "gelu"
    layer_norm_eps: float = above_zero(1e-5)

    def __post_init__(self) -> None:
        _check_activation("hidden_act", self.hidden_act, TEXT_ACTIVATIONS)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} does not divide hidden_size {self.hidden_size}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TextConfig":
        """Read a parsed config.json. Entries that do not affect the text states are skipped."""
        if values.get("model_type", "clip_text_model") != "clip_text_model":
            raise ValueError(f"model_type: {values['model_type']!r} is not clip_text_model")
        return cls(**known_fields(cls, values, ignore=None))


def _check_activation(field: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{field}: {name!r} is not one of {', '.join(known)}")


def _check_groups(widths: tuple[int, ...], groups: int) -> None:
    if not widths:
        raise ValueError("block_out_channels: [] has no level")
    for channels in widths:
        if channels % groups:
            raise ValueError(f"block_out_channels: {channels} is not a multiple of {groups} norm groups")
