"""From pictures to latents, one block of latent frames at a time, so that memory does not grow with the video.

Dims: f frames of a block, n its latent frames, c channels, h w latent height and width, H W height and width of the
picture that the latents cover. n = f except for causal encoders, which compress time.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from vinfinity.errors import InputError, NotFiniteError
from vinfinity.media.blocks import BLOCK_BYTES, BLOCK_FRAMES
from vinfinity.models.decoder import AutoencoderConfig, Encoder, EncoderStream
from vinfinity.models.geometry import LatentGeometry
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.precision import fp32_products

LABEL = "encoding"
# Yields the pictures of contiguous frames in order, (height, width, 3) uint8.
Reader = Callable[[range], Iterator[np.ndarray]]


def encode_frames(
    encoder: Encoder,
    read: Reader | None,
    *,
    latent_frames: range,
    frames: int,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    ranks: Ranks,
) -> Iterator[tuple[range, Tensor] | None]:
    """Encode latent frames of a video in rounds: one block per rank, or on rank 0 alone if the encoder is causal.

    read: on rank 0, which sends the other ranks their blocks. latent_frames: contiguous, starting with a whole block.
    frames: the length of the video; where its latent frames cover more, the last picture is repeated. latent: (c, h,
    w). size: (width, height) of the pictures.

    Each rank has one block in memory, rank 0 those of a round. The blocks, and with them the latents, are the same on
    any number of ranks. Yields, on every rank and in every round, the latent frames that this rank encoded and their
    latents (1, c, n, h, w) fp32 on the CPU, or None if there was no block left for it.

    Raises InputError, on every rank, if the pictures cannot be read, and NotFiniteError.
    """
    block = block_frames(encoder.config, latent[1:])
    if encoder.config.causal:
        yield from _in_order(encoder, read, block, latent_frames, frames, latent=latent, ranks=ranks)
        return
    width, height = size
    spans = _spans(latent_frames, block)
    pictures = None if read is None else read(latent_frames)
    for first in range(0, len(spans), ranks.size):
        current = spans[first : first + ranks.size]
        own: Tensor | None = None
        blocks = _read(pictures, current, ranks)
        if blocks:
            own = blocks[0]
            for rank, others in enumerate(blocks[1:], start=1):
                ranks.send(others, rank, label=LABEL)
        elif ranks.rank < len(current):
            shape = len(current[ranks.rank]), height, width, 3
            own = ranks.receive(torch.empty(shape, dtype=torch.uint8), 0, label=LABEL)
        yield None if own is None else (current[ranks.rank], encode_block(encoder, own, latent=latent))


def _in_order(
    encoder: Encoder,
    read: Reader | None,
    block: int,
    latent_frames: range,
    frames: int,
    *,
    latent: tuple[int, int, int],
    ranks: Ranks,
) -> Iterator[tuple[range, Tensor] | None]:
    """Encode latent frames with a causal encoder, on rank 0 (docs/decisions/0027-decoding-in-order.md).

    Parameters and results are those of `encode_frames`.
    """
    config = encoder.config
    geometry = LatentGeometry(config.latent_channels, config.downscale, config.time_downscale)
    stream = encoder.encoder_stream(latent_frames.start)
    pictures: Iterator[np.ndarray] | None = None
    if read is not None:
        whole = geometry.frame_span(range(stream.first, latent_frames.stop))
        pictures = _repeating(read(range(whole.start, min(whole.stop, frames))))
    before = range(stream.first, latent_frames.start)
    for span in (*_spans(before, block), *_spans(latent_frames, block)):
        own: Tensor | None = None
        for latent_frame in span:
            blocks = _read(pictures, [geometry.frame_span(range(latent_frame, latent_frame + 1))], ranks)
            if blocks:
                part = encode_block(encoder, blocks[0], latent=latent, stream=stream)
                own = part if own is None else torch.cat([own, part], dim=2)
        if span.start >= latent_frames.start:
            yield None if own is None else (span, own)


def _spans(frames: range, block: int) -> list[range]:
    return [
        range(start, min(start + block, frames.stop)) for start in range(frames.start, frames.stop, block)
    ]


def _repeating(pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the pictures, then repeat the last one for ever."""
    last = None
    for picture in pictures:
        last = picture
        yield picture
    while last is not None:
        yield last


def _read(pictures: Iterator[np.ndarray] | None, spans: list[range], ranks: Ranks) -> list[Tensor]:
    """Return the pictures of each span, (f, height, width, 3) uint8; none on ranks other than 0.

    Raises InputError, on every rank, if they cannot be read.
    """
    blocks: list[Tensor] = []
    problem: InputError | None = None
    if pictures is not None:
        try:
            blocks = [torch.from_numpy(np.stack([next(pictures) for _ in span])) for span in spans]
        except InputError as error:
            problem = error
    problem = ranks.all_gather(problem)[0]
    if problem is not None:
        raise problem
    return blocks


def block_frames(config: AutoencoderConfig, latent: tuple[int, int]) -> int:
    """Return the latent frames of a block: the most that fit into 512 MiB, between 1 and 8. latent: (h, w).

    A causal encoder has 8, which it encodes one after the other.
    """
    if config.causal:
        return BLOCK_FRAMES
    return max(1, min(BLOCK_FRAMES, BLOCK_BYTES // frame_bytes(config, latent)))


def frame_bytes(config: AutoencoderConfig, latent: tuple[int, int]) -> int:
    """Return the peak memory of encoding a latent frame in bytes, without weights. latent: (h, w).

    An encoder holds no more hidden states than its decoder.
    """
    height, width = latent
    return 4 * config.peak_channels * height * width * config.downscale**2


@torch.no_grad()
def encode_block(
    encoder: Encoder, pictures: Tensor, *, latent: tuple[int, int, int], stream: EncoderStream | None = None
) -> Tensor:
    """Encode pictures (f, height, width, 3) uint8: latents (1, c, n, h, w) fp32 on the CPU. latent: (c, h, w).

    stream: a causal encoder's stream, which is continued. Raises NotFiniteError.
    """
    latents = encode_pictures(encoder, pictures, latent=latent, stream=stream)
    if not latents.isfinite().all():
        raise NotFiniteError("encoding: pictures encoded to NaN or infinite latents; check the autoencoder")
    return latents.float().cpu().transpose(0, 1)[None].contiguous()


def encode_pictures(
    encoder: Encoder, pictures: Tensor, *, latent: tuple[int, int, int], stream: EncoderStream | None = None
) -> Tensor:
    """Encode pictures (f, height, width, 3) uint8: latents (n, c, h, w) on the encoder's device. latent: (c, h, w).

    Pictures smaller than the area that the latents cover are extended evenly on both sides by repeating their edges;
    decoding crops them there.
    """
    weight = next(encoder.parameters())
    x = pictures.to(weight.device).permute(0, 3, 1, 2).to(weight.dtype).div_(127.5).sub_(1)
    factor = encoder.config.downscale
    down, right = factor * latent[1] - x.shape[2], factor * latent[2] - x.shape[3]
    padding = (right // 2, right - right // 2, down // 2, down - down // 2)
    x = torch.nn.functional.pad(x, padding, mode="replicate")
    stream = stream or encoder.encoder_stream()
    with fp32_products(tf32=True):
        return stream.encode(x.contiguous(memory_format=torch.channels_last))
