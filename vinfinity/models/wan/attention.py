"""Self-attention between latent frames: the only place in the transformer where frames, and therefore ranks, meet.

Dims: b guidance branches, f this rank's latent frames, n attended frames, p tokens per frame, c channels, d head width.

Everything is computed one latent frame at a time: all kernels see the same shapes on any number of ranks, so results
are the same to the last bit, in any precision (docs/decisions/0028-wan-frame-by-frame.md).

Attention sees only the differences of rotary positions. So the query frame is at position 0 in time, and each key frame
is rotated by its distance from it, whatever rule that distance follows: true or grouped, across the seam of a loop, or
in an edit. Keys are sent and stored without a position in time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.kernels import Linear, attend, chunks
from vinfinity.models.wan.positions import rotate, rotations, time_width
from vinfinity.parallel.context import TemporalContext
from vinfinity.system.transfer import to_device

# Extra channels that carry the biases of keys: GPU kernels need head widths that are multiples of 8.
BIAS_CHANNELS = 8


class AttentionProjections(nn.Module):
    """The projections of one attention, with q and k normalised over all heads together (RMSNorm)."""

    def __init__(self, width: int, *, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width)])
        self.norm_q = nn.RMSNorm(width, eps=eps)
        self.norm_k = nn.RMSNorm(width, eps=eps)

    def queries(self, x: Tensor) -> Tensor:
        """Project x (b, p, c) to queries (b, heads, p, d)."""
        return self._heads(self.norm_q(self.to_q(x)))

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project x (b, p, c) to keys and values, (b, heads, p, d) each."""
        return self._heads(self.norm_k(self.to_k(x))), self._heads(self.to_v(x))

    def output(self, x: Tensor) -> Tensor:
        """Project the attention's result x (b, heads, p, d) to the output (b, p, c)."""
        return self.to_out[0](rearrange(x, "b heads p d -> b p (heads d)"))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b p (heads d) -> b heads p d", heads=self.heads)


@dataclass(frozen=True)
class Query:
    """What the tokens of one latent frame attend to.

    row: the frame's position among this rank's frames. at: the attended frames, as positions among this rank's frames
    followed by the fetched ones; a slice where they are consecutive. turns: the rotations of their keys, (2, n, 1, m)
    fp32. bias: (n,) fp32, added to the logits of their keys; None if all are equal. scale: the factor of entropy
    scaling.
    """

    row: int
    at: Tensor | slice
    turns: Tensor
    bias: Tensor | None
    scale: float

    def of(self, frames: Tensor) -> Tensor:
        """Select the attended frames from `frames` (b, heads, f, p, d). Returns (b, heads, n, p, d)."""
        return frames[:, :, self.at] if isinstance(self.at, slice) else frames.index_select(2, self.at)


def plan_queries(ctx: TemporalContext, *, head_width: int, tokens: int, device: torch.device) -> list[Query]:
    """Plan the queries of a rank's frames, in order. tokens: number of tokens per frame."""
    plan = ctx.attention
    held, fetched = plan.held, {frame: index for index, frame in enumerate(plan.route.wanted, len(plan.held))}
    queries = []
    for block in plan.blocks:
        [frame] = block.rows
        places = [key - held.start if key in held else fetched[key] for key in plan.keys(block)]
        turns = rotations(block.distances, time_width(head_width))[:, :, None]
        scale = 1.0
        if plan.entropy is not None:
            scale = math.log(len(places) * tokens) / math.log(max(2, plan.entropy * tokens))
        queries.append(
            Query(
                row=frame - held.start,
                at=_consecutive(places) or to_device(torch.tensor(places), device),
                turns=to_device(turns, device),
                bias=None if block.bias is None else block.bias[0],
                scale=scale,
            )
        )
    return queries


def _consecutive(places: Sequence[int]) -> slice | None:
    """Return places as a slice, or None if they are not consecutive."""
    ordered = list(places) == list(range(places[0], places[0] + len(places)))
    return slice(places[0], places[0] + len(places)) if ordered else None


@dataclass(frozen=True)
class KeysAndValues:
    """Keys and values of this rank's frames, followed by those of fetched frames: (b, heads, f + fetched, p, d) each.

    Keys are rotated by the tokens' positions in the picture, but not in time.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, x: Tensor, heads: int, *, frames: int) -> "KeysAndValues":
        """Allocate keys and values for a number of frames. x: (b, f, p, c), for its shape."""
        shape = (len(x), heads, frames, x.shape[2], x.shape[3] // heads)
        return cls(x.new_empty(shape), x.new_empty(shape))

    def project(self, attention: AttentionProjections, normed: Tensor, at: int, picture: Tensor) -> None:
        """Compute keys and values of the frame at position `at`. normed: (b, p, c). picture: its tokens' rotations."""
        keys, values = attention.keys_and_values(normed)
        self.keys[:, :, at], self.values[:, :, at] = keys, values
        rotate(self.keys[:, :, at, :, -2 * picture.shape[-1] :], picture)


def attended(
    attention: AttentionProjections,
    frames: KeysAndValues,
    query: Query,
    normed: Tensor,
    picture: Tensor,
    *,
    chunk_bytes: int,
) -> Tensor:
    """Attend from the tokens of one frame to all tokens of its attended frames (docs/how/dual-scope-attention.md).

    normed: (b, p, c), the frame of the query. picture: the rotations of its tokens. Returns (b, p, c). Each chunk of
    heads takes one call of attention, without a mask: see `with_bias`.
    """
    q = attention.queries(normed)
    rotate(q[..., -2 * picture.shape[-1] :], picture)
    width, in_time = q.shape[-1], 2 * query.turns.shape[-1]
    if query.scale != 1.0:
        q = q * query.scale
    out = torch.empty_like(q)
    keys_per_head = query.turns.shape[1] * q.shape[2]
    for heads in chunks(attention.heads, 2 * len(q) * keys_per_head * width * q.element_size(), chunk_bytes):
        k, v = query.of(frames.keys[:, heads]), query.of(frames.values[:, heads])
        if isinstance(query.at, slice):
            # a slice gives a view of keys that other queries need as well
            k = k.clone()
        rotate(k[..., :in_time], query.turns)
        part = q[:, heads]
        if query.bias is not None:
            part, k, v = with_bias(part, k, v, query.bias, factor=query.scale)
        found = attend(part, k.flatten(2, 3), v.flatten(2, 3), scale=width**-0.5)
        out[:, heads] = found[..., :width]
    return attention.output(out)


def with_bias(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Append channels to queries and keys that add each key frame's bias to their product.

    So attention needs no mask, and kernels stay fast. The new channels hold `factor` in queries, and the bias times
    sqrt(d) in keys. In 16 bits, one channel holds the rounded bias, a second one the rounding error.

    q: (b, heads, p, d). k, v: (b, heads, n, p, d). bias: (n,) fp32. Returns all three with BIAS_CHANNELS more channels.
    """
    more = BIAS_CHANNELS
    wanted = bias * math.sqrt(q.shape[-1])
    high = wanted.to(k.dtype)
    low = (wanted - high.float()).to(k.dtype)
    wide_q, wide_k, wide_v = (nn.functional.pad(x, (0, more)) for x in (q, k, v))
    wide_q[..., -more : 2 - more] = factor
    wide_k[..., -more] = high[:, None]
    wide_k[..., 1 - more] = low[:, None]
    return wide_q, wide_k, wide_v


def self_attention(
    attention: AttentionProjections,
    normed: Callable[[int], Tensor],
    x: Tensor,
    queries: Sequence[Query],
    picture: Tensor,
    ctx: TemporalContext,
) -> Iterator[tuple[int, Tensor]]:
    """Compute the attention of this rank's frames, in order.

    normed: returns the normed states (b, p, c) of the frame at a position. x: (b, f, p, c), this rank's frames, for
    their shape. Yields the position of each frame and the output for its tokens, (b, p, c); the caller may change a
    frame once it has the output.

    Normed states are sent, which takes half the bytes of keys and values. Meanwhile, this rank projects its own frames.
    """
    sent, route = ctx.attention.route.compact()
    message = torch.stack([normed(at) for at in sent or (0,)], dim=1)
    pending = ctx.exchange.fetch(message, route, label="self-attention")
    own = x.shape[1]
    frames = KeysAndValues.empty(x, attention.heads, frames=own + len(route.wanted))
    for at in range(own):
        frames.project(attention, normed(at), at, picture)
    arrived = pending.wait().frames
    for index in range(len(route.wanted)):
        frames.project(attention, arrived[:, index], own + index, picture)
    del message, pending, arrived
    for query in queries:
        yield (
            query.row,
            attended(attention, frames, query, normed(query.row), picture, chunk_bytes=ctx.chunk_bytes),
        )
