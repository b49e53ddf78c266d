"""UMT5's text encoder (Chung et al. 2023), as Wan uses it.

Dims: b texts, t tokens, c channels, n heads, d head width. Parameters are named as in transformers' UMT5EncoderModel.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.wan.text_config import UMT5Config


class RMSNorm(nn.Module):
    """Divides each state by the root mean square of its channels, in fp32, then scales it."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (b, t, c). Returns the same shape and type."""
        exact = x.float()
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class SelfAttention(nn.Module):
    """Self-attention without scaling, with a learned bias for the distance between tokens."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        width = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q = nn.Linear(config.d_model, width, bias=False)
        self.k = nn.Linear(config.d_model, width, bias=False)
        self.v = nn.Linear(config.d_model, width, bias=False)
        self.o = nn.Linear(width, config.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor) -> Tensor:
        """Attend from x (b, t, c) to itself. Returns the same shape.

        buckets: (t, t), the bucket of each query and key. padding: (b, 1, 1, t), -inf for padding keys, 0 for others.
        """
        q, k, v = (
            rearrange(project(x), "b t (n d) -> b n t d", n=self.heads)
            for project in (self.q, self.k, self.v)
        )
        bias = rearrange(self.relative_attention_bias(buckets), "q k n -> 1 n q k")
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias + padding, scale=1.0)
        return self.o(rearrange(out, "b n t d -> b t (n d)"))


class GatedGELU(nn.Module):
    """A linear layer gated by another one through tanh GELU, then a linear output layer."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (b, t, c) to the same shape."""
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class AttentionLayer(nn.Module):
    """The first half of a block: norm and self-attention; residual."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config)
        self.layer_norm = RMSNorm(config)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor) -> Tensor:
        """Transform x (b, t, c). buckets, padding: as in `SelfAttention`."""
        return x + self.SelfAttention(self.layer_norm(x), buckets, padding)


class FeedForwardLayer(nn.Module):
    """The second half of a block: norm and feed-forward layer; residual."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedGELU(config)
        self.layer_norm = RMSNorm(config)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (b, t, c) to the same shape."""
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    """Self-attention and feed-forward layer."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor) -> Tensor:
        """Transform x (b, t, c). buckets, padding: as in `SelfAttention`."""
        attention, feed_forward = self.layer
        states: Tensor = feed_forward(attention(x, buckets, padding))
        return states


class Stack(nn.Module):
    """The blocks and the final norm, grouped and named as in the files."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.final_layer_norm = RMSNorm(config)


class TextEncoder(nn.Module):
    """Turns token ids into text states: the output of the final norm, one state per token."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)

    def forward(self, ids: Tensor, used: Sequence[int]) -> Tensor:
        """Encode ids (b, t) int64. used: number of tokens that belong to each text; the others are padding.

        Returns (b, t, c), zero for padding. Tokens beyond the longest text are not computed.
        """
        length = max(used)
        own = torch.arange(length, device=ids.device) < torch.tensor(used, device=ids.device)[:, None]
        x = self.shared(ids[:, :length])
        padding = torch.zeros(own.shape, dtype=x.dtype, device=x.device).masked_fill_(~own, -torch.inf)
        buckets = distance_buckets(length, self.config).to(x.device)
        for block in self.encoder.block:
            x = block(x, buckets, padding[:, None, None])
        states = self.encoder.final_layer_norm(x).masked_fill_(~own[..., None], 0.0)
        return F.pad(states, (0, 0, 0, ids.shape[1] - length))


def distance_buckets(tokens: int, config: UMT5Config) -> Tensor:
    """Return the bucket of the distance between each query and key, (t, t) int64.

    Each direction has half of the buckets. Half of those are for a single distance each, the others for ranges that
    grow exponentially up to relative_attention_max_distance.
    """
    each = config.relative_attention_num_buckets // 2
    exact = each // 2
    position = torch.arange(tokens, device="cpu")
    distance = position[None] - position[:, None]
    size = distance.abs()
    # in fp32, as in the published code: rounding matters at the edges of ranges
    steps = torch.log(size.float() / exact) / math.log(config.relative_attention_max_distance / exact)
    ranges = exact + (steps.clamp(min=0.0) * (each - exact)).long()
    bucket = torch.where(size < exact, size, ranges.clamp(max=each - 1))
    return bucket + each * (distance > 0)
