"""Videos made from an earlier run's: a stretch of it made anew, or more of it, while the rest stays as it is."""

from pathlib import Path

import torch
from torch import Tensor

from vinfinity.config import RunConfig
from vinfinity.errors import InputError
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.parts import DamagedError, Parts, read_manifest
from vinfinity.sampling.keep import KeptFrames, kept_until
from vinfinity.sampling.samplers import Sampler


def kept_latents(folder: RunFolder, *, field: str = "run") -> Parts:
    """The final latents of a run, by their manifest alone. Raises InputError where there are none."""
    try:
        return read_manifest(folder.latents)
    except DamagedError as error:
        remedy = f"`vinfinity resume {folder.path}` computes them"
        raise InputError(field, folder.path, remedy, problem=f"has no latents ({error.message})") from None


def check_edit(config: RunConfig, latent: tuple[int, int, int]) -> None:
    """Raises InputError where the earlier run does not go with this one. latent: (c, h, w) of one frame."""
    parts = _source(config)
    redo, (c, _, h, w) = config.edit.stretch, parts.read(range(1)).shape
    if (c, h, w) != latent:
        problem = f"holds latents of {c}x{h}x{w}, and this video is made of {'x'.join(map(str, latent))}"
        raise InputError("edit.run", config.edit.run, "leave model and size as they were", problem=problem)
    if redo.stop > parts.frames:
        problem = f"goes beyond the run's {parts.frames} frames"
        raise InputError("edit.redo", config.edit.redo, "name frames of that run", problem=problem)
    if config.frames < parts.frames:
        problem = f"is less than the run's {parts.frames} frames"
        raise InputError("frames", config.frames, "keep all of them", problem=problem)


def noise_seeds(config: RunConfig, *, steps: int) -> list[int]:
    """The seed that the noise of each frame is drawn with: of a frame that is kept, the one it was made with."""
    seeds = [config.seed] * config.frames
    if config.edit.run is not None:
        parts = _source(config)
        until = _kept_until(config, range(config.frames), known=parts.frames, steps=steps)
        for start, stop, seed in parts.seeds:
            seeds[start:stop] = [seed if until[frame] else config.seed for frame in range(start, stop)]
    return seeds


def keeping(
    config: RunConfig, sampler: Sampler, held: range, latent: tuple[int, int, int], *, device: torch.device
) -> Sampler:
    """The sampler under which this rank's frames of the earlier video stay. Raises DamagedError."""
    parts = _source(config)
    parts.verify()
    clean = torch.zeros(1, latent[0], len(held), *latent[1:])
    known = range(held.start, max(held.start, min(held.stop, parts.frames)))
    if known:
        clean[0, :, : len(known)] = parts.read(known)
    until = _kept_until(config, held, known=parts.frames, steps=len(sampler.timesteps))
    return KeptFrames(sampler, clean.to(device), until.to(device))


def _kept_until(config: RunConfig, frames: range, *, known: int, steps: int) -> Tensor:
    return kept_until(frames, known=known, redo=config.edit.stretch, blend=config.edit.blend, steps=steps)


def _source(config: RunConfig) -> Parts:
    assert config.edit.run is not None
    return kept_latents(RunFolder(Path(config.edit.run)), field="edit.run")
