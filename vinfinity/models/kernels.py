"""Kernels that the networks of all families share: linear layers, convolutions, attention, sinusoids.

In fp32 on a CPU, the result for a vector, a picture or a query does not depend on the rest of its batch, to the last
bit (docs/decisions/0011-the-same-bits-on-any-number-of-ranks.md).

Dims: b batch, m pictures or tokens, c channels, t keys, d head width, h w height and width.
"""

import math
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# torch uses oneDNN for a convolution with a 1x1 kernel from this many pictures on, and for a single picture with more
# than this many elements.
ONEDNN_PICTURES = 16
ONEDNN_ELEMENTS = 20480

# Attention on a CPU computes queries in groups of this size. If their number is a multiple of it, a query's result does
# not depend on the other queries.
QUERY_GROUP = 4

# With at most this many keys and channels per head, 16-bit attention on a CPU is up to twice as fast in fp32, including
# the conversions.
FEW_KEYS = 48
NARROW_HEADS = 32

# The largest batch that attention's kernels on GPUs take (pytorch#146704).
ATTENTION_BATCH = 65535


def chunks(count: int, item_bytes: int, chunk_bytes: int) -> list[slice]:
    """Split `count` items of `item_bytes` bytes into chunks of about `chunk_bytes` bytes, to bound temporaries."""
    size = max(1, chunk_bytes // max(item_bytes, 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def uses_onednn(x: Tensor) -> bool:
    """Return whether layers compute x with oneDNN: convolutions by default, linear layers by our choice.

    With oneDNN, a frame's result is the same to the bit whichever frames share its batch, and so on any number of
    ranks. The exceptions are inputs so small that torch picks other kernels; layers pad them. See docs/decisions/0006.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + bias.

    In fp32 on a CPU, this runs as a 1x1 convolution over channels-last memory: torch computes convolutions with oneDNN,
    but matrix products with MKL, which takes 2.3 times as long on non-Intel CPUs (docs/decisions/0006).

    x: (..., c). weight: (c', c). bias: (c',). out: (..., c'), where to write the result. Writing needs a copy in fp32
    on a CPU, and where the vectors of `out` are not equally spaced in memory. Returns (..., c').
    """
    vectors = x.reshape(-1, x.shape[-1])
    if out is not None:
        if uses_onednn(x) or not is_matrix(out):
            return out.copy_(linear(x, weight, bias))
        matrix = out.view(-1, out.shape[-1])
        if bias is None:
            torch.mm(vectors, weight.t(), out=matrix)
        else:
            torch.addmm(bias, vectors, weight.t(), out=matrix)
        return out
    if not uses_onednn(x) or not x.numel():
        # as a matrix: torch chooses the kernel for other inputs by their strides
        return F.linear(vectors, weight, bias).view(*x.shape[:-1], len(weight))
    count = len(vectors)
    rows = picture_rows(count)
    if rows is None:
        rows = ONEDNN_PICTURES
        vectors = F.pad(vectors, (0, 0, 0, -count % rows))
    picture = rearrange(vectors.view(rows, -1, 1, x.shape[-1]), "rows m one c -> rows c m one")
    out = F.conv2d(picture, weight[:, :, None, None], bias)
    return rearrange(out, "rows c m one -> (rows m one) c")[:count].view(*x.shape[:-1], -1)


def is_matrix(x: Tensor) -> bool:
    """Return whether the vectors of x, (..., c), are equally spaced in memory."""
    rows = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride(), strict=False) if size > 1]
    return x.stride(-1) == 1 and all(outer == size * inner for (_, outer), (size, inner) in pairwise(rows))


@cache
def picture_rows(vectors: int) -> int | None:
    """Choose the number of equal rows that turn vectors into a batch of pictures for oneDNN.

    vectors: number of vectors. Returns None if no number from 16 to 256 divides it.
    """
    return next((rows for rows in range(ONEDNN_PICTURES, min(vectors, 256) + 1) if vectors % rows == 0), None)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    """Apply F.conv2d to pictures (m, c, h, w), with results that do not depend on the number of pictures.

    A single small picture is duplicated; otherwise torch would not use oneDNN, and would add in another order.
    """
    if uses_onednn(x) and len(x) == 1 and x.numel() <= ONEDNN_ELEMENTS:
        return F.conv2d(torch.cat([x, x]), weight, bias, **options)[:1]
    return F.conv2d(x, weight, bias, **options)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Compute softmax attention.

    q: (b, heads, m, d). k, v: (b, heads, t, d). bias: (m, t), added to the logits. scale: factor of the logits,
    1 / sqrt(d) by default. Returns (b, heads, m, d).
    """
    if q.device.type == "cpu" and q.dtype.itemsize < 4 and _is_small(k):
        wide = None if bias is None else bias.float()
        return attend(q.float(), k.float(), v.float(), bias=wide, scale=scale).to(q.dtype)
    count = q.shape[2]
    if uses_onednn(q) and count % QUERY_GROUP:
        q = F.pad(q, (0, 0, 0, -count % QUERY_GROUP))
        bias = None if bias is None else F.pad(bias, (0, 0, 0, -count % QUERY_GROUP))

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)

    if len(q) <= ATTENTION_BATCH:
        return attended(q, k, v)[:, :, :count]
    batches = zip(*(x.split(ATTENTION_BATCH) for x in (q, k, v)), strict=True)
    return torch.cat([attended(*batch) for batch in batches])[:, :, :count]


def _is_small(k: Tensor) -> bool:
    return k.shape[2] <= FEW_KEYS and k.shape[3] <= NARROW_HEADS


class Linear(nn.Linear):
    """A linear layer that computes with `linear`."""

    def forward(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Transform x (..., in_features). out: see `linear`. Returns (..., out_features)."""
        return linear(x, self.weight, self.bias, out=out)


def sinusoids(values: Tensor, width: int) -> Tensor:
    """Return cosines, then sines of `values` at width/2 geometric frequencies (DDPM, as in Stable Diffusion).

    values: (b,), of any type. Returns (b, width) fp32.
    """
    half = width // 2
    frequencies = torch.exp(
        -torch.arange(half, dtype=torch.float32, device=values.device) * (math.log(10000.0) / half)
    )
    angles = values.float()[:, None] * frequencies[None, :]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))
