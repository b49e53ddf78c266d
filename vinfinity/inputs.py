"""What denoising starts from: the text of each frame, the initial state and the sampler."""

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vinfinity.denoise.kept_frames import KeptFrames
from vinfinity.denoise.loop import not_finite
from vinfinity.denoise.start import noised
from vinfinity.denoise.state import Sampler, State
from vinfinity.job import Job
from vinfinity.media.latents import LatentSource, pick_latents
from vinfinity.models.frame_text import FrameText
from vinfinity.networks import Networks
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.folders import expanded
from vinfinity.system.precision import fp32_products


def shared_text(job: Job, networks: Networks, ranks: Ranks) -> FrameText:
    """Encode the text of every frame on rank 0, and send it to all ranks: text encoders can be larger than denoisers.

    Raises NotFiniteError on rank 0 if states are NaN or infinite, and RankError on ranks that do not receive them.
    """
    device, dtype = ranks.device, job.dtype(ranks.device)
    states = None
    if ranks.is_first:
        states = text_states(job, networks.text_encoder(job), device=device, dtype=dtype)
    shape = (len(job.texts), job.tokenizer.length, job.card.traits.denoiser.text_width)
    return frame_text(job, ranks.broadcast(states, shape=shape, dtype=dtype, label="text states"))


def frame_text(job: Job, states: Tensor) -> FrameText:
    """Return the text of each frame that the job computes. states: (n, t, c), the encoded states of all its texts."""
    return job.prompts.text_of(states, job.selection.frames, guided=job.guided)


@torch.no_grad()
def text_states(job: Job, encoder: nn.Module, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the states of all texts of a job, (n, t, c). Raises NotFiniteError if they are NaN or infinite."""
    tokens = [job.tokenizer(text) for text in job.texts]
    ids = torch.tensor([prompt.ids for prompt in tokens], device=device)
    with fp32_products(tf32=False):
        states: Tensor = job.card.family.encode_text(encoder, ids, [prompt.used for prompt in tokens])
    if not states.isfinite().all():
        raise not_finite("text encoder", "its output", dtype)
    return states


def initial_state(job: Job, frames: Sequence[int], video: LatentSource | None = None) -> State:
    """Return the state before the first step: noise (1, c, f, h, w) fp32 for these frames, from a file or their seeds.

    video: latents of the video to start from, if there is one; the noise is added to them.
    """
    if job.config.noise_from is None:
        noise = job.selection.noise(frames, job.latent)
    else:
        whole = load_file(expanded(job.config.noise_from, field="noise_from"))["noise"]
        noise = whole[:, :, list(frames)].float()
    if video is None:
        return State(step=0, x=noise)
    return noised(job.sampler, pick_latents(video, frames), noise)


def steered(
    job: Job,
    frames: Sequence[int],
    *,
    device: torch.device,
    pictures: LatentSource | None = None,
) -> Sampler:
    """Return the job's sampler, which sets frames that an edit keeps, or that have an image, to their latents.

    frames: this rank's frames. pictures: the latents of the images in order. Raises DamagedError.
    """
    sampler = job.sampler
    if job.earlier is not None:
        sampler = job.earlier.sampler(sampler, frames, job.latent, device=device)
    if pictures is None:
        return sampler
    clean = torch.zeros(1, job.latent[0], len(frames), *job.latent[1:])
    until = torch.zeros(len(frames), dtype=torch.int64)
    for frame, number in job.pinned_images.items():
        if frame in frames:
            at = list(frames).index(frame)
            clean[:, :, at] = pick_latents(pictures, [number])[:, :, 0]
            until[at] = len(sampler.timesteps)
    return KeptFrames(sampler, clean.to(device), until.to(device))
