"""Wan 2.1's transformer (Wan Team 2025, arXiv 2503.20314), for the latent frames of one rank.

Dims: b guidance branches, f this rank's latent frames, h w latent height and width, p tokens per frame, t text tokens,
c channels.

Parameters are named as in diffusers' WanTransformer3DModel. As there, the time embedder, the layer norms and the
tables of shifts and scales stay in fp32.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.frame_text import FrameText
from vinfinity.models.kernels import Linear, attend, linear, sinusoids
from vinfinity.models.wan.attention import AttentionProjections, Query, plan_queries, self_attention
from vinfinity.models.wan.configs import TransformerConfig
from vinfinity.models.wan.positions import picture_rotations
from vinfinity.parallel.context import TemporalContext
from vinfinity.system.transfer import to_device


class TimestepEmbedding(nn.Module):
    """Two linear layers over sinusoids of the timestep, in fp32."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """Embed x (1, width) fp32. Returns (1, out) fp32."""
        return self.linear_2(F.silu(self.linear_1(x)))


class TextProjection(nn.Module):
    """Turns the text encoder's states into those that the blocks attend to."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, out)
        self.linear_2 = Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., width) to (..., out)."""
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


class ConditionEmbedder(nn.Module):
    """Embeds timestep and text for the blocks."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.time_embedder = TimestepEmbedding(config.freq_dim, config.width)
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = TextProjection(config.text_dim, config.width)

    def time(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Embed timestep t (1,). Returns the embedding (1, c) and its projection for blocks (1, 6, c), in `dtype`."""
        features = sinusoids(t, self.time_embedder.linear_1.in_features)
        embedded = self.time_embedder(features).to(dtype)
        return embedded, self.time_proj(F.silu(embedded)).unflatten(1, (6, -1))


class GELU(nn.Module):
    """A linear layer and the tanh approximation of GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers. net.1 stands for the dropout of the published files, which has no parameters."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GELU(width, inner), nn.Identity(), Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (b, p, c) to the same shape."""
        for layer in self.net:
            x = layer(x)
        return x


class LayerNorm(nn.LayerNorm):
    """A layer norm in fp32, optionally followed by a scale and a shift (adaptive layer norm)."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Normalise x (b, p, c). scale, shift: (1, c) fp32. Returns the shape and type of x."""
        normed = super().forward(x.float())
        if scale is not None and shift is not None:
            normed = normed * (1 + scale) + shift
        return normed.to(x.dtype)


class Block(nn.Module):
    """Self-attention over frames, cross-attention to the text, feed-forward; residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads, eps = config.width, config.num_attention_heads, config.eps
        self.norm1 = LayerNorm(width, eps, elementwise_affine=False)
        self.attn1 = AttentionProjections(width, heads=heads, eps=eps)
        self.attn2 = AttentionProjections(width, heads=heads, eps=eps)
        self.norm2 = LayerNorm(width, eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(width, config.ffn_dim)
        self.norm3 = LayerNorm(width, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(
        self,
        x: Tensor,
        text: FrameText,
        time: Tensor,
        queries: list[Query],
        picture: Tensor,
        ctx: TemporalContext,
    ) -> Tensor:
        """Change x (b, f, p, c) in place and return it. text: as `TextProjection` leaves it. time: (1, 6, c).

        Each frame runs through the rest of the block right after its self-attention, so temporaries are for one frame.
        """
        parts = (self.scale_shift_table + time.float()).unbind(1)
        shift, scale, gate, shift_after, scale_after, gate_after = parts

        def normed(at: int) -> Tensor:
            return self.norm1(x[:, at], scale, shift)

        words = TextKeys(self.attn2, text, ctx.attention.held)
        for at, found in self_attention(self.attn1, normed, x, queries, picture, ctx):
            frame = (x[:, at].float() + found * gate).to(x.dtype)
            asked = self.attn2.queries(self.norm2(frame))
            frame = frame + self.attn2.output(attend(asked, *words.of(at)))
            forward = self.ffn(self.norm3(frame, scale_after, shift_after))
            x[:, at] = (frame.float() + forward.float() * gate_after).to(x.dtype)
        return x


class TextKeys:
    """The keys and values of each frame's text, computed once for consecutive frames with the same text."""

    def __init__(self, attention: AttentionProjections, text: FrameText, held: range) -> None:
        self._attention, self._runs = attention, text.runs(held)
        self._made: tuple[range, tuple[Tensor, Tensor]] | None = None

    def of(self, at: int) -> tuple[Tensor, Tensor]:
        """Return keys and values, (b, heads, t, d) each. at: a frame's position among this rank's."""
        if self._made is None or at not in self._made[0]:
            span, states = next((span, states) for span, states in self._runs if at in span)
            self._made = span, self._attention.keys_and_values(states)
        return self._made[1]


class Transformer(nn.Module):
    """Predicts the velocity from clean latents to noise (flow matching)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_channels, width, patch, stride=patch)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm_out = LayerNorm(width, config.eps, elementwise_affine=False)
        self.proj_out = Linear(width, config.out_channels * math.prod(patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)

    def embed_text(self, text: FrameText) -> FrameText:
        """Embed the text for `forward`. The result is the same in all steps."""
        embedder = self.condition_embedder.text_embedder
        states = [embedder(text.states[:, state]) for state in range(text.states.shape[1])]
        return FrameText(torch.stack(states, dim=1), text.of_frames)

    def forward(self, x: Tensor, t: Tensor, text: FrameText, ctx: TemporalContext) -> Tensor:
        """Predict the velocity (b, c, f, h, w) of latents x (b, c, f, h, w) at training timestep t (1,).

        h and w are multiples of the patch size. text: see `embed_text`.
        """
        config, side = self.config, self.config.patch_size[1]
        size = x.shape[3] // side, x.shape[4] // side
        picture = to_device(picture_rotations(*size, config.attention_head_dim), x.device)
        queries = plan_queries(
            ctx, head_width=config.attention_head_dim, tokens=size[0] * size[1], device=x.device
        )
        embedded, time = self.condition_embedder.time(t, x.dtype)
        hidden = torch.stack(list(self._tokens(x)), dim=1)
        for block in self.blocks:
            block(hidden, text, time, queries, picture, ctx)
        shift, scale = (self.scale_shift_table + embedded[:, None]).unbind(1)
        out = torch.empty_like(x)
        for at in range(x.shape[2]):
            patches = self.proj_out(self.norm_out(hidden[:, at], scale, shift))
            out[:, :, at] = rearrange(
                patches, "b (h w) (i j c) -> b c (h i) (w j)", h=size[0], w=size[1], i=side, j=side
            )
        return out

    def _tokens(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the embedded patches of each frame, (b, p, c)."""
        side, embedding = self.config.patch_size[1], self.patch_embedding
        weight = embedding.weight.flatten(1)
        for frame in x.unbind(2):
            patches = rearrange(frame, "b c (h i) (w j) -> b (h w) (c i j)", i=side, j=side)
            yield linear(patches, weight, embedding.bias)


def compile_layers(transformer: Transformer) -> None:
    """Compile the layers that do not wait for other ranks, each at its first call."""
    for block in transformer.modules():
        if isinstance(block, Block):
            for layer in (block.ffn, block.norm1, block.norm3):
                layer.compile()
