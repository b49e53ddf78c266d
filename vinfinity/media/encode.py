"""From pictures to latents, a block of frames at a time, so that memory does not grow with the video.

Dims: f frames of a block, c channels, h w latent height and width, H W of a picture that latents cover.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vinfinity.errors import InputError, NotFiniteError
from vinfinity.media.blocks import BLOCK_BYTES, BLOCK_FRAMES
from vinfinity.models.decoder import AutoencoderConfig, Encoder
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.precision import fp32_products

LABEL = "encoding"


def encode_frames(
    encoder: Encoder,
    pictures: Iterator[np.ndarray] | None,
    *,
    frames: range,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    ranks: Ranks,
) -> Iterator[tuple[range, Tensor] | None]:
    """Encodes frames of a video in rounds, a block of frames for each rank.

    pictures: those of `frames` in order, (height, width, 3) uint8, on rank 0, which sends the others their blocks.
    frames: contiguous, starting with a whole block. latent: (c, h, w). size: (width, height) of the pictures.
    Each rank has one block in memory, rank 0 those of a round. The blocks, and with them the latents, are the same on
    any number of ranks. Yields, on every rank and in every round, the frames that this rank encoded and their latents
    (1, c, f, h, w) fp32 on the CPU, or None if no block was left for it.

    Raises InputError, on every rank, if the pictures cannot be read, and NotFiniteError.
    """
    width, height = size
    block = block_frames(encoder.config, latent[1:])
    spans = [
        range(start, min(start + block, frames.stop)) for start in range(frames.start, frames.stop, block)
    ]
    for first in range(0, len(spans), ranks.size):
        current = spans[first : first + ranks.size]
        own: Tensor | None = None
        blocks = _read(pictures, current)
        problem = ranks.collect(blocks if isinstance(blocks, InputError) else None)[0]
        if problem is not None:
            raise problem
        if not isinstance(blocks, InputError) and blocks:
            own = blocks[0]
            for rank, others in enumerate(blocks[1:], start=1):
                ranks.send(others, rank, label=LABEL)
        elif ranks.rank < len(current):
            shape = len(current[ranks.rank]), height, width, 3
            own = ranks.receive(torch.empty(shape, dtype=torch.uint8), 0, label=LABEL)
        yield None if own is None else (current[ranks.rank], encode_block(encoder, own, latent=latent))


def _read(pictures: Iterator[np.ndarray] | None, spans: list[range]) -> list[Tensor] | InputError:
    """The pictures of each span, (f, height, width, 3) uint8, or why they cannot be read; none on other ranks."""
    if pictures is None:
        return []
    try:
        return [torch.from_numpy(np.stack([next(pictures) for _ in span])) for span in spans]
    except InputError as error:
        return error


def block_frames(config: AutoencoderConfig, latent: tuple[int, int]) -> int:
    """The frames that are encoded at once: as many as fit into 512 MiB, at least 1 and at most 8. latent: (h, w).

    An encoder holds no more hidden states than its decoder.
    """
    return max(1, min(BLOCK_FRAMES, BLOCK_BYTES // frame_bytes(config, latent)))


def frame_bytes(config: AutoencoderConfig, latent: tuple[int, int]) -> int:
    """The most bytes that encoding a frame takes, without weights. latent: (h, w)."""
    height, width = latent
    return 4 * config.peak_channels * height * width * config.downscale**2


@torch.no_grad()
def encode_block(encoder: Encoder, pictures: Tensor, *, latent: tuple[int, int, int]) -> Tensor:
    """The latents of pictures (f, height, width, 3) uint8: (1, c, f, h, w) fp32 on the CPU. latent: (c, h, w).

    Raises NotFiniteError.
    """
    latents = encode_pictures(encoder, pictures, latent=latent)
    if not latents.isfinite().all():
        raise NotFiniteError("encoding: pictures encoded to NaN or infinite latents; check the autoencoder")
    return latents.float().cpu().transpose(0, 1)[None].contiguous()


def encode_pictures(encoder: Encoder, pictures: Tensor, *, latent: tuple[int, int, int]) -> Tensor:
    """The latents (f, c, h, w) of pictures (f, height, width, 3) uint8, on the encoder's device. latent: (c, h, w).

    Pictures that the latents do not fit exactly are extended by repeating their edges, evenly on both sides, where
    decoding cuts them off.
    """
    weight = next(encoder.parameters())
    x = pictures.to(weight.device).permute(0, 3, 1, 2).to(weight.dtype).div_(127.5).sub_(1)
    factor = encoder.config.downscale
    down, right = factor * latent[1] - x.shape[2], factor * latent[2] - x.shape[3]
    padding = (right // 2, right - right // 2, down // 2, down - down // 2)
    x = torch.nn.functional.pad(x, padding, mode="replicate")
    with fp32_products(tf32=True):
        return encoder.to_latents(x.contiguous(memory_format=torch.channels_last))
