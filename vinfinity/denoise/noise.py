"""Noise that depends only on (seed, frame, step), not on the rank that holds the frame.

The first 200 frames of a 2,000-frame run start from the same noise as a 200-frame run.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

INITIAL = 0


def frame_noise(
    seed: int | Sequence[int], frames: Sequence[int], shape: tuple[int, int, int], *, draw: int = INITIAL
) -> Tensor:
    """Draw standard normal noise for some frames on the CPU: (1, c, f, h, w) fp32.

    seed: one for all frames, or one for each. frames: absolute frame indices. shape: one frame's (c, h, w). draw:
    INITIAL for the initial noise, step + 1 for the noise that a sampler adds in a step.
    """
    out = np.empty((len(frames), *shape), dtype=np.float32)
    seeds = [seed] * len(frames) if isinstance(seed, int) else seed
    for row, frame, key in zip(out, frames, seeds, strict=True):
        # a counter-based generator: the key is the seed, the counter starts at (frame, draw)
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, frame, draw]))
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out).transpose(0, 1)[None].contiguous()
