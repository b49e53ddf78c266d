"""FreeNoise (Qiu et al. 2023, arXiv 2310.15169) for the UNet family, as a setting of the study in long_video.py.

Written from the paper, not for use: the package has dual-scope attention instead. N is the number of frames in the
training clips, S the stride of the windows; the paper has N = 16 and S = 4. Frames and windows are counted from 0.

**Noise rescheduling.** The noises ε_0 ... ε_{N-1} are drawn; later frames get them again, shuffled within units of S
frames:

    ε_i = ε_{i'},   i' = i - N + π_u(i mod S) - i mod S,   u = i // S,   i >= N,

π_u a random permutation of 0 ... S-1. So any window of N frames that begins at a multiple of S holds each of the N
noises once. The paper samples with DDIM, where this is all the noise there is. A sampler that adds noise in each step
would undo it; here that noise follows the same order.

**Window-based attention fusion.** Temporal attention runs in the windows W_k = {kS, ..., kS + N - 1}. The output for
frame i is the mean of those of the windows that it lies in, with weights that fall linearly from the window's centre
c_k = kS + (N-1)/2:

    F_i = Σ_k w_ik F_i^k / Σ_k w_ik,   w_ik = (N+1)/2 - |i - c_k|   over all k with i in W_k.

If the last window does not end with the video, another one does. Everything else, such as temporal convolutions and
GroupNorm, is over all frames, and a video of at most N frames is the base model's own. The paper's third part, motion
injection, is for changes of prompts, which the study does not have.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

import vinfinity
from vinfinity.denoise import selection
from vinfinity.denoise.noise import INITIAL, frame_noise
from vinfinity.models.kernels import attend
from vinfinity.models.unet3d import temporal
from vinfinity.models.unet3d.layers import Attention
from vinfinity.parallel.scopes import AttentionPlan

WINDOW, STRIDE = 16, 4


def noise_order(frames: int, *, seed: int, window: int = WINDOW, stride: int = STRIDE) -> np.ndarray:
    """For each frame, the frame below `window` whose noise it gets: i' of the equation, resolved. (frames,) int64."""
    generator = np.random.default_rng([seed, window, stride])
    order = np.arange(-(-max(frames, window) // stride) * stride)
    for start in range(window, len(order), stride):
        earlier = order[start - window : start - window + stride]
        order[start : start + stride] = generator.permutation(earlier)
    return order[:frames]


def windows(frames: int, *, window: int = WINDOW, stride: int = STRIDE) -> list[range]:
    """Return the windows W_k, and one that ends with the video; only one if the video fits into a window."""
    starts = [*range(0, max(1, frames - window + 1), stride)]
    if starts[-1] + window < frames:
        starts.append(frames - window)
    return [range(start, min(start + window, frames)) for start in starts]


def window_weights(frames: int, spans: Sequence[range]) -> Tensor:
    """Return the share of each window in each frame of the output: (windows, frames) fp32; each frame sums to 1."""
    weights = torch.zeros(len(spans), frames)
    for row, span in zip(weights, spans, strict=True):
        centre = (span.start + span.stop - 1) / 2
        at = torch.arange(span.start, span.stop)
        row[span.start : span.stop] = (len(span) + 1) / 2 - (at - centre).abs()
    return weights / weights.sum(0)


def window_attention(
    attention: Attention,
    norm: Callable[[Tensor], Tensor],
    x: Tensor,
    fetch: Callable[[], temporal.Remote],
    plan: AttentionPlan,
) -> Iterator[tuple[slice, Tensor]]:
    """In place of `dual_scope_attention`: x: (b, f, n, c), all frames of the video. Yields all rows and their output.

    Needs a single rank; of the plan, nothing else is read.
    """
    frames = x.shape[1]
    if len(plan.held) != plan.timeline.frames or frames != len(plan.held):
        raise ValueError("FreeNoise's attention needs all frames on one rank")
    normed = norm(x)
    queries, keys, values = attention.to_q(normed), attention.to_k(normed), attention.to_v(normed)
    out = torch.zeros_like(queries)
    spans = windows(frames)
    for span, share in zip(spans, window_weights(frames, spans).to(x), strict=True):
        at = slice(span.start, span.stop)
        for i in range(len(x)):
            per_head = [
                rearrange(y[i, at], "f n (heads d) -> n heads f d", heads=attention.heads)
                for y in (queries, keys, values)
            ]
            merged = rearrange(attend(*per_head), "n heads f d -> f n (heads d)")
            out[i, at] += share[at, None, None] * merged
    yield slice(0, frames), attention.to_out[0](out)


def rescheduled_noise(
    order: np.ndarray,
    seed: int | Sequence[int],
    frames: Sequence[int],
    shape: tuple[int, int, int],
    *,
    draw: int = INITIAL,
) -> Tensor:
    """In place of `frame_noise`: the noise of the frame that `order` names for each frame."""
    return frame_noise(seed, [int(order[frame]) for frame in frames], shape, draw=draw)


@contextmanager
def freenoise(frames: int, *, seed: int) -> Iterator[None]:
    """Inside the block, this process generates videos of this length and seed as FreeNoise does."""
    noise, attend_dual = selection.frame_noise, temporal.dual_scope_attention
    try:
        selection.frame_noise = partial(rescheduled_noise, noise_order(frames, seed=seed))
        temporal.dual_scope_attention = window_attention
        yield
    finally:
        selection.frame_noise, temporal.dual_scope_attention = noise, attend_dual


def generate(prompt: str, *, frames: int, seed: int, **settings: Any) -> vinfinity.Video:
    """`vinfinity.generate` with FreeNoise, on one device. Needs a model of the UNet family."""
    with freenoise(frames, seed=seed):
        # without anchors, nothing is projected for them
        return vinfinity.generate(prompt, frames=frames, seed=seed, **{"attention.anchors": 0, **settings})
