"""From latents to pictures, a block of frames at a time, so that memory does not grow with the video."""

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

T = TypeVar("T")
LABEL = "decoding"


def decode_frames(
    decoder: Decoder,
    source: LatentSource | None,
    *,
    frames: range,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    blocks: Blocks,
    ranks: Ranks,
) -> Iterator[np.ndarray]:
    """Decodes frames of a video one by one, in order; yields on rank 0 only.

    source: the latents as the sampler left them, on rank 0; a block of them is read at a time. frames: contiguous, to
    the video's end. latent: (c, h, w). size: (width, height) of the frames in pixels, cut from the middle of what the
    latents decode to. Several ranks are dealt blocks in turn: each holds one block, whatever the length of the video,
    and the blocks are the same on any number of ranks, so that the pictures are, too. Yields (height, width, 3) uint8.
    """
    before = (
        frames.start % blocks.frames
    )  # a picture may depend, in its last bits, on the block it is decoded in
    stretches = [
        range(start, min(start + blocks.frames, frames.stop))
        for start in range(frames.start - before, frames.stop, blocks.frames)
    ]
    pictures = _decode_blocks(
        decoder, source, stretches, latent=latent, size=size, tile=blocks.tile, ranks=ranks
    )
    return itertools.islice(pictures, before, None)


def _decode_blocks(
    decoder: Decoder,
    source: LatentSource | None,
    stretches: list[range],
    *,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    tile: int | None,
    ranks: Ranks,
) -> Iterator[np.ndarray]:
    """The pictures of blocks of frames, one by one, on rank 0."""
    width, height = size
    if not ranks.first:
        for stretch in stretches[ranks.rank :: ranks.size]:
            dealt = ranks.receive(torch.empty(latent[0], len(stretch), *latent[1:]), 0, label=LABEL)
            ranks.send(decode_block(decoder, dealt, size=size, tile=tile).wait(), 0, label=LABEL)
        return
    assert source is not None
    # a device decodes the next block while the pictures of this one leave it and are written
    own = one_ahead(
        decode_block(decoder, source.read(stretch), size=size, tile=tile)
        for stretch in stretches[:: ranks.size]
    )
    for first in range(0, len(stretches), ranks.size):
        dealt_out = list(enumerate(stretches[first + 1 : first + ranks.size], start=1))
        for rank, stretch in dealt_out:
            ranks.send(source.read(stretch).contiguous(), rank, label=LABEL)
        yield from next(own).wait().numpy()
        for rank, stretch in dealt_out:
            pictures = torch.empty(len(stretch), height, width, 3, dtype=torch.uint8)
            yield from ranks.receive(pictures, rank, label=LABEL).numpy()


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each given out when the next has been asked for."""
    iterator = iter(items)
    try:
        waiting = next(iterator)
    except StopIteration:
        return
    for item in iterator:
        yield waiting
        waiting = item
    yield waiting


@dataclass(frozen=True)
class Decoding:
    """A block on its way from the device.

    pictures: (f, height, width, 3) uint8. finite: (), whether all values were numbers. Both are on the CPU, and there
    when `ready` is; None: already.
    """

    pictures: Tensor
    finite: Tensor
    latents: Tensor
    ready: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """The pictures. Raises VinfinityError where the decoder made values that are no numbers."""
        if self.ready is not None:
            self.ready.synchronize()
        if not self.finite:
            what = "the latents" if self.latents.isfinite().all() else "latents that are no numbers"
            raise NotFiniteError(f"decoding: {what} gave pictures that are no numbers; try dtype=fp32")
        return self.pictures


@torch.inference_mode()
def decode_block(decoder: Decoder, latents: Tensor, *, size: tuple[int, int], tile: int | None) -> Decoding:
    """Starts to decode a block; a GPU is never waited for here.

    latents: (c, f, h, w) on the CPU. size: (width, height), at most those of the latents. tile: see `decode_tiles`.
    """
    width, height = size
    weight = next(decoder.parameters())
    on_gpu = weight.device.type == "cuda"
    # copies between a GPU and memory that is not pinned make the host wait
    sent = latents.contiguous().pin_memory() if on_gpu else latents
    x = sent.to(weight.device, weight.dtype, non_blocking=True).transpose(0, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    factor = decoder.config.downscale
    whole = x.new_empty(len(x), factor * x.shape[2], factor * x.shape[3], 3, dtype=torch.uint8)
    finite = torch.ones((), dtype=torch.bool, device=weight.device)
    for top, left, piece in decode_tiles(decoder, x, tile=tile):
        finite &= piece.isfinite().all()
        pixels = piece.float().mul(127.5).add_(127.5).round_().clamp_(0, 255).permute(0, 2, 3, 1)
        whole[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    top, left = (whole.shape[1] - height) // 2, (whole.shape[2] - width) // 2
    pictures = whole[:, top : top + height, left : left + width].contiguous()
    if not on_gpu:
        return Decoding(pictures, finite, latents, None)
    host = torch.empty(pictures.shape, dtype=torch.uint8, pin_memory=True)
    flag = torch.empty((), dtype=torch.bool, pin_memory=True)
    host.copy_(pictures, non_blocking=True)
    flag.copy_(finite, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return Decoding(host, flag, latents, ready)


def decode_tiles(decoder: Decoder, latents: Tensor, *, tile: int | None) -> Iterator[tuple[int, int, Tensor]]:
    """Decodes pictures in tiles that overlap by a quarter and are blended there, as diffusers' AutoencoderKL does.

    latents: (b, c, h, w). tile: latent positions of a side, a multiple of 4; None decodes all at once, and so does one
    that is no smaller than the latents. Yields (top, left, (b, 3, h', w')): pieces that cover the picture, each in its
    final state. Of the others only the edges that are still to be blended are held.
    """
    height, width = latents.shape[2:]
    if tile is None or max(height, width) <= tile:
        yield 0, 0, decoder.decode(latents)
        return
    step, factor = tile - tile // OVERLAP, decoder.config.downscale
    kept = step * factor
    above: list[Tensor] = []  # the lower edges of the row of tiles before
    for top in range(0, height, step):
        below: list[Tensor] = []
        beside: Tensor | None = None  # the right edge of the tile before
        for column, left in enumerate(range(0, width, step)):
            picture = decoder.decode(latents[:, :, top : top + tile, left : left + tile])
            if top:
                _blend(above[column], picture, dim=2)
            if beside is not None:
                _blend(beside, picture, dim=3)
            # copies: a view would keep the whole tile
            below.append(picture[:, :, kept:].clone())
            beside = picture[:, :, :, kept:].clone()
            yield top * factor, left * factor, picture[:, :, :kept, :kept]
        above = below


def _blend(edge: Tensor, picture: Tensor, *, dim: int) -> None:
    """Blends the first rows (dim 2) or columns (dim 3) of a picture with the edge of the one before, in place."""
    extent = edge.shape[dim]
    ramp = torch.arange(extent, device=edge.device, dtype=edge.dtype) / extent
    ramp = ramp[:, None] if dim == 2 else ramp
    begin = picture.narrow(dim, 0, extent)
    begin.copy_(torch.lerp(edge, begin, ramp))
