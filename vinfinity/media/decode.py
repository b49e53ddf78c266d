"""From latents to pictures, a block of frames at a time, so that memory does not grow with the video."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vinfinity.errors import VinfinityError
from vinfinity.models.vae import AutoencoderKL
from vinfinity.parallel.ranks import Ranks

LABEL = "decoding"


def decode_frames(
    vae: AutoencoderKL,
    latents: Tensor | None,
    *,
    frames: int,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    block: int,
    ranks: Ranks,
) -> Iterator[np.ndarray]:
    """Decodes a video frame by frame, in order; yields on rank 0 only.

    latents: (1, c, frames, h, w) as the sampler left them, on rank 0. latent: (c, h, w). size: (width, height) of the
    frames in pixels, cut from the middle of what the latents decode to. block: frames decoded at once.
    Several ranks are dealt blocks in turn: each holds one block, whatever the length of the video, and the blocks are
    the same on any number of ranks, so that the pictures are, too. Yields (height, width, 3) uint8.
    """
    width, height = size
    starts = range(0, frames, block)
    counts = [min(block, frames - start) for start in starts]
    if not ranks.first:
        for count in counts[ranks.rank :: ranks.size]:
            dealt = ranks.receive(torch.empty(latent[0], count, *latent[1:]), 0, label=LABEL)
            ranks.send(decode_block(vae, dealt, size=size), 0, label=LABEL)
        return
    assert latents is not None
    for first in range(0, len(starts), ranks.size):
        turn = range(first, min(first + ranks.size, len(starts)))
        blocks = [latents[0, :, starts[i] : starts[i] + counts[i]].float() for i in turn]
        for rank in range(1, len(turn)):
            ranks.send(blocks[rank].cpu().contiguous(), rank, label=LABEL)
        yield from decode_block(vae, blocks[0], size=size).numpy()
        for rank in range(1, len(turn)):
            pictures = torch.empty(counts[turn[rank]], height, width, 3, dtype=torch.uint8)
            yield from ranks.receive(pictures, rank, label=LABEL).numpy()


@torch.inference_mode()
def decode_block(vae: AutoencoderKL, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
    """latents: (c, f, h, w). size: (width, height). Returns (f, height, width, 3) uint8 on the CPU."""
    width, height = size
    weight = next(vae.parameters())
    pictures = vae.decode(latents.transpose(0, 1).to(weight.device, weight.dtype))
    if not pictures.isfinite().all():
        what = "the latents" if latents.isfinite().all() else "latents that are no numbers"
        raise VinfinityError(f"decoding: {what} gave pictures that are no numbers; try dtype=fp32")
    top, left = (pictures.shape[2] - height) // 2, (pictures.shape[3] - width) // 2
    pictures = pictures[:, :, top : top + height, left : left + width].float()
    pixels = (pictures * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu()
