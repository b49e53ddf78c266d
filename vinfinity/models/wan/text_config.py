"""The architecture of UMT5's encoder, with the names of its published config.json. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from vinfinity.system.fields import above_zero, known_fields

# the only feed-forward layer in UMT5's published models
GATED_GELU = "gated-gelu"


@dataclass(frozen=True)
class UMT5Config:
    """UMT5's encoder, with the names of a transformers config.json.

    d_model: width of a state. d_kv: width of a head. d_ff: width inside a feed-forward layer. The distances between
    tokens fall into relative_attention_num_buckets buckets; all from relative_attention_max_distance on share one.

    Raises ValueError for an architecture that this encoder does not have.
    """

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = above_zero(1e-6)
    feed_forward_proj: str = GATED_GELU

    def __post_init__(self) -> None:
        if self.feed_forward_proj != GATED_GELU:
            raise ValueError(f"feed_forward_proj: {self.feed_forward_proj!r} is not {GATED_GELU}")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets % 4 or buckets < 4:
            raise ValueError(f"relative_attention_num_buckets: {buckets} is not a multiple of 4")
        if distance <= buckets // 4:
            raise ValueError(f"relative_attention_max_distance: {distance} is not above {buckets // 4}")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "UMT5Config":
        """Read a parsed config.json. Entries that do not affect the text states are skipped."""
        if values.get("model_type", "umt5") != "umt5":
            raise ValueError(f"model_type: {values['model_type']!r} is not umt5")
        return cls(**known_fields(cls, values, ignore=None))


def text_name(name: str) -> str | None:
    """Return the parameter that a tensor in a text encoder's file fills; None for the token embedding's second name.

    Some files store the embedding twice, and the second copy may be all zeros.
    """
    return None if name == "encoder.embed_tokens.weight" else name
