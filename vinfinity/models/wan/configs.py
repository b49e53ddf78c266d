"""The architecture of Wan's transformer, with the names of the published config.json. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from vinfinity.system.fields import above_zero, known_fields

# entries that only affect how diffusers loads or computes the same model
IGNORED_ENTRIES = ("rope_max_seq_len", "window_size", "add_img_emb", "qk_norm")


@dataclass(frozen=True)
class TransformerConfig:
    """WanTransformer3DModel of text-to-video models, with the names of a diffusers config.json.

    patch_size: latent frames, height and width of a token. freq_dim: number of sinusoids of the timestep.

    Raises ValueError for an architecture that this transformer does not have.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = above_zero(1e-6)

    def __post_init__(self) -> None:
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or self.patch_size[1] != self.patch_size[2]:
            raise ValueError(f"patch_size: {list(self.patch_size)} is not [1, n, n]")
        if self.attention_head_dim % 2 or self.attention_head_dim < 6:
            raise ValueError(
                f"attention_head_dim: {self.attention_head_dim} is not an even number of at least 6"
            )
        if self.in_channels != self.out_channels:
            raise ValueError(
                f"in_channels: {self.in_channels} for {self.out_channels} out_channels is an image-to-video or "
                "editing model; only text-to-video models are supported"
            )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TransformerConfig":
        """Read a parsed config.json. Raises ValueError for features that this transformer does not have."""
        for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
            if values.get(key) is not None:
                raise ValueError(
                    f"{key}: {values[key]!r} belongs to an image-to-video model; "
                    "only text-to-video models are supported"
                )
        if values.get("qk_norm", "rms_norm_across_heads") != "rms_norm_across_heads":
            raise ValueError(f"qk_norm: {values['qk_norm']!r} is not rms_norm_across_heads")
        return cls(**known_fields(cls, values, ignore=IGNORED_ENTRIES))
