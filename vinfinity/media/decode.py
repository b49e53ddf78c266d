"""From latents to pictures, one block of latent frames at a time, so that memory does not grow with the video.

Dims: l latent frames and f frames of a block, b frames of a tile's batch, c channels, h w latent height and width.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from vinfinity.errors import NotFiniteError
from vinfinity.media.blocks import OVERLAP, Blocks
from vinfinity.media.latents import LatentSource
from vinfinity.media.turns import plan_turns
from vinfinity.models.decoder import Decoder, DecoderStream, FrameDecoder
from vinfinity.models.geometry import LatentGeometry
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.out_of_memory import named_out_of_memory
from vinfinity.system.precision import fp32_products
from vinfinity.system.transfer import pinned, to_device, to_host

T = TypeVar("T")
LABEL = "decoding"
# the type of a picture's samples, by their number of bits
SAMPLE_TYPES = {8: torch.uint8, 16: torch.uint16}


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
    """Decode frames of a video, in order; yield them on rank 0 only.

    source: the latents as the sampler left them, on rank 0; read one block at a time. frames: contiguous, up to the end
    of the video. latent: (c, h, w). size: (width, height) of the frames in pixels, cropped from the middle of the
    decoded pictures. Ranks take turns: each has two blocks in memory, whatever the length of the video. The pictures
    are the same on any number of ranks. For the turns of causal decoders, see `plan_turns`. Yields (height, width, 3),
    uint8, or uint16 if `bits` is 16.

    Raises Stopped between two pictures if a shutdown was requested, and OutOfMemoryError with a remedy for decoding.
    """
    geometry = geometry_of(decoder)
    wanted = geometry.latent_span(frames)
    picture_bytes = 3 * size[0] * size[1] * bits // 8
    turns = plan_turns(decoder, len(wanted), blocks, ranks=ranks.size, picture_bytes=picture_bytes)
    if ranks.rank >= turns.ranks:
        return
    if turns.ranks == 1:
        ranks = ranks.alone()
    length = turns.length
    # the last bits of a picture may depend on its block: start with the whole block that contains the first frame
    begin = wanted.start - wanted.start % blocks.frames
    spans = [range(start, min(start + length, wanted.stop)) for start in range(begin, wanted.stop, length)]
    surplus = frames.start - geometry.frame_span(range(begin, wanted.stop)).start
    shared = _SharedDecoding(
        decoder, source, spans, latent=latent, size=size, tile=blocks.tile, ranks=ranks, bits=bits
    )
    with named_out_of_memory(str(ranks), remedy=_less_memory(decoder, blocks, latent[1:], ranks.device)):
        for picture in itertools.islice(shared.pictures(), surplus, surplus + len(frames)):
            ranks.shutdown.check()
            yield picture


def _less_memory(decoder: Decoder, blocks: Blocks, latent: tuple[int, int], device: torch.device) -> str:
    """Return the remedy for running out of memory; it works in any run that has latents already. latent: (h, w)."""
    options = ["a machine with more memory" if device.type == "cpu" else "--device cpu"]
    if not decoder.config.causal:
        side = (max(latent) if blocks.tile is None else blocks.tile) * decoder.config.downscale
        multiple = OVERLAP * decoder.config.downscale
        smaller = side // 2 // multiple * multiple
        options = [f"decode.tile={smaller}"] * (smaller > 0) + options
        options = ["decode.frames=1"] * (blocks.frames > 1) + options
    return f"try {', or '.join(options)}"


def geometry_of(decoder: Decoder) -> LatentGeometry:
    """Return the grid of the latents that a decoder takes."""
    config = decoder.config
    return LatentGeometry(config.latent_channels, config.downscale, config.time_downscale)


def decode_single(
    decoder: Decoder, source: LatentSource, frame: int, *, size: tuple[int, int], tile: int | None
) -> np.ndarray:
    """Decode one frame anywhere in a video: (height, width, 3) uint8. See `decode_block`."""
    geometry = geometry_of(decoder)
    span = geometry.latent_span(range(frame, frame + 1))
    stream = decoder.stream(span.start)
    latents = source.read(range(stream.first, span.stop))
    block = decode_block(decoder, latents, size=size, tile=tile, stream=stream)
    picture: np.ndarray = block.wait()[frame - geometry.frame_span(span).start].numpy()
    return picture


@dataclass(frozen=True)
class _SharedDecoding:
    """The decoding of spans of latent frames, one per turn, shared by all ranks."""

    decoder: Decoder
    source: LatentSource | None
    spans: list[range]
    latent: tuple[int, int, int]
    size: tuple[int, int]
    tile: int | None
    ranks: Ranks
    bits: int

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield the pictures of all spans, in order, on rank 0."""
        ranks = self.ranks
        # on each rank, the device decodes the next block while the pictures of this one are copied, and sent or written
        own = one_ahead(self._decoded(range(ranks.rank, len(self.spans), ranks.size)))
        if not ranks.is_first:
            for block in own:
                # as bytes: backends have no unsigned 16-bit integers
                ranks.send(block.wait().view(torch.uint8), 0, label=LABEL)
            return
        turns = range(len(self.spans))
        rounds = [turns[first : first + ranks.size] for first in turns[:: ranks.size]]
        self._hand_out(rounds[0] if rounds else turns)
        width, height = self.size
        geometry = geometry_of(self.decoder)
        for current, following in zip(rounds, [*rounds[1:], turns[:0]], strict=True):
            # the other ranks send the pictures of a round after they have the latents of the next one
            self._hand_out(following)
            yield from next(own).wait().numpy()
            for rank, turn in enumerate(current[1:], start=1):
                frames = geometry.frame_span(self.spans[turn])
                pictures = torch.empty(len(frames), height, width, 3, dtype=SAMPLE_TYPES[self.bits])
                ranks.receive(pictures.view(torch.uint8), rank, label=LABEL)
                yield from pictures.numpy()

    def _decoded(self, turns: range) -> "Iterator[DecodedBlock]":
        """Yield the blocks of this rank's turns."""
        stream: DecoderStream | None = None
        for turn in turns:
            self.ranks.shutdown.check()
            if stream is None or not self._continues(turn):
                stream = self.decoder.stream(self.spans[turn].start)
            yield decode_block(
                self.decoder,
                self._latents(turn),
                size=self.size,
                tile=self.tile,
                bits=self.bits,
                stream=stream,
                check=self.ranks.shutdown.check,
            )

    def _continues(self, turn: int) -> bool:
        """Return whether the rank of a turn also decoded the span before it."""
        before = turn - self.ranks.size
        return before >= 0 and self.spans[before].stop == self.spans[turn].start

    def _needed(self, turn: int) -> range:
        """Return the latent frames that the rank of a turn needs."""
        span = self.spans[turn]
        return span if self._continues(turn) else range(self.decoder.stream(span.start).first, span.stop)

    def _latents(self, turn: int) -> Tensor:
        """Return the latents of a turn: read on rank 0, received on the other ranks."""
        needed = self._needed(turn)
        if self.source is not None:
            return self.source.read(needed)
        channels, *position = self.latent
        return self.ranks.receive(torch.empty(channels, len(needed), *position), 0, label=LABEL)

    def _hand_out(self, turns: range) -> None:
        """Send the other ranks their latents of a round."""
        assert self.source is not None
        for rank, turn in enumerate(turns[1:], start=1):
            self.ranks.send(self.source.read(self._needed(turn)).contiguous(), rank, label=LABEL)


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one was taken from `items`."""
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
    """The pictures of a block, which may still be on their way to the CPU.

    pictures: (f, height, width, 3) uint8 or uint16. finite: whether all decoded values are finite, a tensor ().
    latents: (c, l, h, w). ready: the event after which the pictures and `finite` are on the CPU; None if they already
    are.
    """

    pictures: Tensor
    finite: Tensor
    latents: Tensor
    ready: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """Return the pictures, once on the CPU. Raises NotFiniteError if the decoder gave NaN or infinite values."""
        if self.ready is not None:
            self.ready.synchronize()
        if not self.finite:
            which = "finite" if self.latents.isfinite().all() else "NaN or infinite"
            raise NotFiniteError(
                f"decoding: {which} latents decoded to NaN or infinite frames; try dtype=fp32"
            )
        return self.pictures


def _nothing() -> None:
    """Check nothing."""


@torch.inference_mode()
def decode_block(
    decoder: Decoder,
    latents: Tensor,
    *,
    size: tuple[int, int],
    tile: int | None,
    bits: int = 8,
    stream: DecoderStream | None = None,
    check: Callable[[], None] = _nothing,
) -> DecodedBlock:
    """Start to decode a block, without waiting for a GPU.

    latents: (c, l, h, w) on the CPU. size: (width, height) in pixels, no larger than what the latents decode to. tile:
    see `decode_tiles`. bits: the bits of a sample, 8 or 16. stream: the decoder's stream at these latents; None if they
    begin the video. check: called before pictures are copied; may raise.
    """
    width, height = size
    weight = next(decoder.parameters())
    on_gpu = weight.device.type == "cuda"
    x = to_device(latents, weight.device).to(weight.dtype).transpose(0, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    stream = decoder.stream() if stream is None else stream
    rows, columns = (decoder.config.downscale * side for side in x.shape[2:])
    top, left = (rows - height) // 2, (columns - width) // 2
    finite = torch.ones((), dtype=torch.bool, device=weight.device)
    # pictures are whole on the device that decodes them, and cropped on their way from a GPU
    shape = stream.frames(len(x)), *((height, width) if on_gpu else (rows, columns)), 3
    make = partial(torch.empty, shape, dtype=SAMPLE_TYPES[bits])
    host = pinned(make) if on_gpu else make(device=weight.device)
    done = 0
    with fp32_products(tf32=True):
        for count, pieces in _decoded_pieces(decoder, stream, x, tile=tile):
            own = host[done : done + count]
            whole = x.new_empty(count, rows, columns, 3, dtype=SAMPLE_TYPES[bits]) if on_gpu else own
            for row, column, piece in pieces:
                finite &= piece.isfinite().all()
                part = to_samples(piece, bits)
                whole[:, row : row + part.shape[1], column : column + part.shape[2]] = part
            check()
            if on_gpu:
                own.copy_(_cut(whole, top, left, size), non_blocking=True)
            done += count
    if not on_gpu:
        return DecodedBlock(_cut(host, top, left, size), finite, latents, None)
    # copied after all pictures
    flag = to_host(finite)
    return DecodedBlock(host, flag.tensor, latents, flag.ready)


def to_samples(pictures: Tensor, bits: int) -> Tensor:
    """Convert pictures (f, 3, h, w) in [-1, 1] to samples of `bits` bits, (f, h, w, 3), in floating point."""
    white = 2**bits - 1
    samples = pictures.float().mul(white / 2).add_(white / 2).round_().clamp_(0, white)
    return samples.permute(0, 2, 3, 1)


def _cut(pictures: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    return pictures[:, top : top + size[1], left : left + size[0]].contiguous()


def _decoded_pieces(
    decoder: Decoder, stream: DecoderStream, x: Tensor, *, tile: int | None
) -> Iterator[tuple[int, Iterable[tuple[int, int, Tensor]]]]:
    """Decode latents (l, c, h, w) in batches of pictures. Yield the size of each batch, and the pieces that cover it.

    A piece is (row, column, (f, 3, h', w')).
    """
    if tile is None:
        for pictures in stream.decode(x):
            yield len(pictures), [(0, 0, pictures)]
    else:
        # only decoders of independent frames have tiles, see `check_tile`
        yield len(x), decode_tiles(cast(FrameDecoder, decoder), x, tile=tile)


def decode_tiles(
    decoder: FrameDecoder, latents: Tensor, *, tile: int | None
) -> Iterator[tuple[int, int, Tensor]]:
    """Decode pictures in tiles that overlap by a quarter and are blended there, as diffusers' AutoencoderKL does.

    latents: (b, c, h, w). tile: the side of a tile in latent positions, a multiple of 4; None, or a tile that covers
    the latents, decodes all at once. Yields (top, left, (b, 3, h', w')): finished pieces that cover the picture. Of the
    earlier tiles, only the edges that are still to be blended stay in memory.
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
    """Blend the first rows (dim 2) or columns (dim 3) of a picture with the edge of its neighbour, in place."""
    extent = edge.shape[dim]
    ramp = torch.arange(extent, device=edge.device, dtype=edge.dtype) / extent
    ramp = ramp[:, None] if dim == 2 else ramp
    begin = picture.narrow(dim, 0, extent)
    begin.copy_(torch.lerp(edge, begin, ramp))
