"""From latents to pictures, some frames at a time, so that memory does not grow with the video."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vinfinity.models.vae import AutoencoderKL


@torch.inference_mode()
def decode_frames(
    vae: AutoencoderKL, latents: Tensor, *, size: tuple[int, int], block: int
) -> Iterator[np.ndarray]:
    """Decodes a video frame by frame, in order.

    latents: (1, c, f, h, w) as the sampler left them, on any device. size: (width, height) of the frames in
    pixels, cut from the middle of what the latents decode to. block: frames decoded at once. Yields (height,
    width, 3) uint8.
    """
    width, height = size
    weight = next(vae.parameters())
    for some in latents[0].split(block, dim=1):
        pictures = vae.decode(some.transpose(0, 1).to(weight.device, weight.dtype))
        top, left = (pictures.shape[2] - height) // 2, (pictures.shape[3] - width) // 2
        pictures = pictures[:, :, top : top + height, left : left + width].float()
        pixels = (pictures * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        yield from pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
