"""From latents to pictures, a block of frames at a time, so that memory does not grow with the video.

Dims: f frames of a block, b frames of a tile's batch, c channels, h w latent height and width.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vinfinity.errors import NotFiniteError
from vinfinity.media.blocks import OVERLAP, Blocks
from vinfinity.media.latents import LatentSource
from vinfinity.models.decoder import Decoder
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.precision import fp32_products

T = TypeVar("T")
LABEL = "decoding"
# the type of a picture's samples, by their bits
SAMPLES = {8: torch.uint8, 16: torch.uint16}


def decode_frames(
    decoder: Decoder,
    source: LatentSource | None,
    *,
    frames: range,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    blocks: Blocks,
    ranks: Ranks,
    bits: int = 8,
) -> Iterator[np.ndarray]:
    """Decodes frames of a video, in order; yields on rank 0 only.

    source: the latents as the sampler left them, on rank 0; read a block at a time. frames: contiguous, up to the end
    of the video. latent: (c, h, w). size: (width, height) of the frames in pixels, cut from the middle of the decoded
    pictures. Several ranks take turns: each has two blocks in memory, whatever the length of the video. The blocks, and
    with them the pictures, are the same on any number of ranks. Yields (height, width, 3), uint8 or, if `bits` is 16,
    uint16.

    Raises Stopped between two pictures if this rank was asked to end.
    """
    # the last bits of a picture may depend on its block: start with the whole block that contains the first frame
    surplus = frames.start % blocks.frames
    spans = [
        range(start, min(start + blocks.frames, frames.stop))
        for start in range(frames.start - surplus, frames.stop, blocks.frames)
    ]
    pictures = _decode_blocks(
        decoder, source, spans, latent=latent, size=size, tile=blocks.tile, ranks=ranks, bits=bits
    )
    for picture in itertools.islice(pictures, surplus, None):
        ranks.shutdown.check()
        yield picture


def _decode_blocks(
    decoder: Decoder,
    source: LatentSource | None,
    spans: list[range],
    *,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    tile: int | None,
    ranks: Ranks,
    bits: int,
) -> Iterator[np.ndarray]:
    """The pictures of blocks of frames, in order, on rank 0. spans: the frames of each block."""
    width, height = size
    rounds = [spans[first : first + ranks.size] for first in range(0, len(spans), ranks.size)]
    # on all ranks, the device decodes the next block while the pictures of this one are copied, and sent or written
    if not ranks.first:

        def received() -> Iterator[Tensor]:
            for span in spans[ranks.rank :: ranks.size]:
                ranks.shutdown.check()
                yield ranks.receive(torch.empty(latent[0], len(span), *latent[1:]), 0, label=LABEL)

        for block in one_ahead(decode_block(decoder, x, size=size, tile=tile, bits=bits) for x in received()):
            # as bytes: backends know no unsigned numbers of 16 bits
            ranks.send(block.wait().view(torch.uint8), 0, label=LABEL)
        return
    assert source is not None

    def hand_out(spans: list[range]) -> None:
        for rank, span in enumerate(spans[1:], start=1):
            ranks.send(source.read(span).contiguous(), rank, label=LABEL)

    own = one_ahead(
        decode_block(decoder, source.read(spans[0]), size=size, tile=tile, bits=bits) for spans in rounds
    )
    hand_out(rounds[0] if rounds else [])
    for current, following in zip(rounds, [*rounds[1:], []], strict=True):
        # the other ranks send the pictures of a round after they have the latents of the next one
        hand_out(following)
        yield from next(own).wait().numpy()
        for rank, span in enumerate(current[1:], start=1):
            pictures = torch.empty(len(span), height, width, 3, dtype=SAMPLES[bits])
            ranks.receive(pictures.view(torch.uint8), rank, label=LABEL)
            yield from pictures.numpy()


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each one yielded after the next one was taken from `items`."""
    iterator = iter(items)
    try:
        previous = next(iterator)
    except StopIteration:
        return
    for item in iterator:
        yield previous
        previous = item
    yield previous


@dataclass(frozen=True)
class DecodedBlock:
    """The pictures of a block, on the CPU or on their way there.

    pictures: (f, height, width, 3) uint8 or uint16. finite: (), whether all decoded values are finite.
    latents: (c, f, h, w). ready: the event after which pictures and flag are on the CPU; None: they are there.
    """

    pictures: Tensor
    finite: Tensor
    latents: Tensor
    ready: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """The pictures. Raises NotFiniteError if the decoder produced NaN or infinite values."""
        if self.ready is not None:
            self.ready.synchronize()
        if not self.finite:
            which = "finite" if self.latents.isfinite().all() else "NaN or infinite"
            raise NotFiniteError(
                f"decoding: {which} latents decoded to NaN or infinite frames; try dtype=fp32"
            )
        return self.pictures


@torch.inference_mode()
def decode_block(
    decoder: Decoder, latents: Tensor, *, size: tuple[int, int], tile: int | None, bits: int = 8
) -> DecodedBlock:
    """Starts to decode a block, without waiting for a GPU.

    latents: (c, f, h, w) on the CPU. size: (width, height) in pixels, no larger than what the latents decode to.
    tile: see `decode_tiles`. bits: of a sample, 8 or 16.
    """
    width, height = size
    white = 2**bits - 1
    weight = next(decoder.parameters())
    on_gpu = weight.device.type == "cuda"
    # copies from memory that is not pinned would make the host wait
    pinned = latents.contiguous().pin_memory() if on_gpu else latents
    x = pinned.to(weight.device, weight.dtype, non_blocking=True).transpose(0, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    factor = decoder.config.downscale
    whole = x.new_empty(len(x), factor * x.shape[2], factor * x.shape[3], 3, dtype=SAMPLES[bits])
    finite = torch.ones((), dtype=torch.bool, device=weight.device)
    with fp32_products(tf32=True):
        for top, left, piece in decode_tiles(decoder, x, tile=tile):
            finite &= piece.isfinite().all()
            pixels = (
                piece.float().mul(white / 2).add_(white / 2).round_().clamp_(0, white).permute(0, 2, 3, 1)
            )
            whole[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    top, left = (whole.shape[1] - height) // 2, (whole.shape[2] - width) // 2
    pictures = whole[:, top : top + height, left : left + width].contiguous()
    if not on_gpu:
        return DecodedBlock(pictures, finite, latents, None)
    host = torch.empty(pictures.shape, dtype=pictures.dtype, pin_memory=True)
    flag = torch.empty((), dtype=torch.bool, pin_memory=True)
    host.copy_(pictures, non_blocking=True)
    flag.copy_(finite, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return DecodedBlock(host, flag, latents, ready)


def decode_tiles(decoder: Decoder, latents: Tensor, *, tile: int | None) -> Iterator[tuple[int, int, Tensor]]:
    """Decodes pictures in tiles that overlap by a quarter and are blended there, as diffusers' AutoencoderKL does.

    latents: (b, c, h, w). tile: latent positions along a side, a multiple of 4; None, or a tile that covers the
    latents, decodes all at once. Yields (top, left, (b, 3, h', w')): finished pieces that cover the picture. Of the
    tiles before, only the edges that are yet to be blended stay in memory.
    """
    height, width = latents.shape[2:]
    if tile is None or max(height, width) <= tile:
        yield 0, 0, decoder.decode(latents)
        return
    step, factor = tile - tile // OVERLAP, decoder.config.downscale
    inner = step * factor
    # the lower edges of the row of tiles above, and the right edge of the tile to the left
    above: list[Tensor] = []
    for top in range(0, height, step):
        below: list[Tensor] = []
        beside: Tensor | None = None
        for column, left in enumerate(range(0, width, step)):
            picture = decoder.decode(latents[:, :, top : top + tile, left : left + tile])
            if top:
                _blend(above[column], picture, dim=2)
            if beside is not None:
                _blend(beside, picture, dim=3)
            # copies: a view would keep the whole tile in memory
            below.append(picture[:, :, inner:].clone())
            beside = picture[:, :, :, inner:].clone()
            yield top * factor, left * factor, picture[:, :, :inner, :inner]
        above = below


def _blend(edge: Tensor, picture: Tensor, *, dim: int) -> None:
    """Blends the first rows (dim 2) or columns (dim 3) of a picture with the edge of its neighbour, in place."""
    extent = edge.shape[dim]
    ramp = torch.arange(extent, device=edge.device, dtype=edge.dtype) / extent
    ramp = ramp[:, None] if dim == 2 else ramp
    begin = picture.narrow(dim, 0, extent)
    begin.copy_(torch.lerp(edge, begin, ramp))
