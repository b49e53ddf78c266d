"""Spatial attention, which stays within each frame, so that ranks need nothing from each other.

Dims: b batch, f frames, h w latent height and width, n positions (h·w), c channels, t text tokens.
"""

from collections.abc import Sequence
from typing import cast

from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.kernels import Linear
from vinfinity.models.unet3d.layers import TransformerBlock, frames_first, frames_last
from vinfinity.models.unet3d.norm import GroupNorm


class SpatialTransformer(nn.Module):
    """Self-attention over the positions of a frame, cross-attention to the text, feed-forward; residual.

    Transformer2DModel in diffusers, with linear projections.
    """

    def __init__(self, channels: int, *, head_width: int, context: int, groups: int) -> None:
        super().__init__()
        heads = channels // head_width
        inner = heads * head_width
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(inner, heads=heads, head_width=head_width, context=context)]
        )
        self.proj_out = Linear(inner, channels)

    def forward(self, x: Tensor, text: Sequence[tuple[range, Tensor]]) -> Tensor:
        """Change x (b, f, h, w, c) in place and return it.

        text: runs of frames that share a text, as their positions and states (b, t, context); together all frames of x.
        """
        block = cast(TransformerBlock, self.transformer_blocks[0])
        b, _, h, w, _ = x.shape
        hidden = self.proj_in(frames_last(self.norm(frames_first(x)), b))
        hidden = rearrange(hidden, "b f h w c -> (b f) (h w) c")
        hidden += block.attn1(block.norm1(hidden))
        # all positions of frames with the same text form one long row of queries: no copy of the text per frame
        hidden = rearrange(hidden, "(b f) n c -> b (f n) c", b=b)
        for frames, states in text:
            rows = hidden if len(text) == 1 else hidden[:, frames.start * h * w : frames.stop * h * w]
            rows += block.attn2(block.norm2(rows), states)
        hidden += block.ff(block.norm3(hidden))
        x += rearrange(self.proj_out(hidden), "b (f h w) c -> b f h w c", h=h, w=w)
        return x
