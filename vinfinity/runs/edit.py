"""Videos made from an earlier run's: a stretch of it made anew, or more of it, while the rest stays as it is."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.config import RunConfig
from vinfinity.denoise.kept_frames import KeptFrames, kept_until
from vinfinity.denoise.samplers import Sampler
from vinfinity.errors import InputError
from vinfinity.parallel.shards import anchor_frames
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.parts import DamagedError, Parts, read_manifest, stretches

AT_ONCE = 256  # frames that are copied at once


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
    redo, (c, _, h, w) = config.edit.span, parts.read(range(1)).shape
    if (c, h, w) != latent:
        problem = f"holds latents of {c}x{h}x{w}, and this video is made of {'x'.join(map(str, latent))}"
        raise InputError("edit.run", config.edit.run, "leave model and size as they were", problem=problem)
    if redo.stop > parts.frames:
        problem = f"goes beyond the run's {parts.frames} frames"
        raise InputError("edit.redo", config.edit.redo, "name frames of that run", problem=problem)
    if config.frames < parts.frames:
        problem = f"is less than the run's {parts.frames} frames"
        raise InputError("frames", config.frames, "keep all of them", problem=problem)


@dataclass(frozen=True)
class Footage:
    """Which frames of a video are computed. All indices are absolute, and ascending.

    frames: those that are denoised. made: those of them that go into the video; the others are an earlier run's, there
    for these to fit to. seeds: what the noise of each frame of the video is drawn with.
    """

    frames: Sequence[int]
    made: Collection[int]
    seeds: Sequence[int]

    def of(self, held: range) -> list[int]:
        """The frames that a rank denoises. held: their places among `frames`."""
        return list(self.frames[held.start : held.stop])


def footage(config: RunConfig, *, steps: int) -> Footage:
    """What a run computes: all frames, or in an edit those that are made, `edit.context` frames on either side of them,
    and the anchors of the video.

    What lies beyond these hardly touches the frames that are made (docs/decisions/0009), so that the cost of an edit
    does not grow with the video. Raises InputError where the earlier run has no latents.
    """
    total, attention = config.frames, config.attention
    if config.edit.run is None:
        return Footage(range(total), range(total), (config.seed,) * total)
    parts = _source(config)
    made = [*config.edit.span, *range(parts.frames, total)]
    wanted = (
        set(range(total)) if total <= attention.trained_frames else {*anchor_frames(total, attention.anchors)}
    )
    for stretch in stretches(made):
        near = range(stretch.start - config.edit.context, stretch.stop + config.edit.context)
        wanted |= {frame for frame in near if 0 <= frame < total}
    seeds = [config.seed] * total
    until = _kept_until(config, range(total), known=parts.frames, steps=steps)
    for start, stop, seed in parts.seeds:
        seeds[start:stop] = [seed if until[frame] else config.seed for frame in range(start, stop)]
    return Footage(tuple(sorted(wanted)), frozenset(made), tuple(seeds))


def keeping(
    config: RunConfig,
    sampler: Sampler,
    own: Sequence[int],
    latent: tuple[int, int, int],
    *,
    device: torch.device,
) -> Sampler:
    """The sampler under which frames of the earlier video stay. own: this rank's frames. Raises DamagedError."""
    parts = _source(config)
    parts.verify()
    clean = torch.zeros(1, latent[0], len(own), *latent[1:])
    known = [frame for frame in own if frame < parts.frames]
    if known:
        clean[0, :, : len(known)] = parts.pick(known)
    until = _kept_until(config, own, known=parts.frames, steps=len(sampler.timesteps))
    return KeptFrames(sampler, clean.to(device), until.to(device))


def kept_pieces(config: RunConfig) -> Iterator[tuple[range, Mapping[str, Tensor]]]:
    """The frames of the earlier run that stay, some at a time: tensors (1, c, f, h, w)."""
    if config.edit.run is None:
        return
    parts, redo = _source(config), config.edit.span
    for stretch in stretches(frame for frame in range(parts.frames) if frame not in redo):
        for start in range(stretch.start, stretch.stop, AT_ONCE):
            piece = range(start, min(start + AT_ONCE, stretch.stop))
            yield piece, {"x": parts.read(piece)[None]}


def _kept_until(config: RunConfig, frames: Sequence[int], *, known: int, steps: int) -> Tensor:
    return kept_until(frames, known=known, redo=config.edit.span, blend=config.edit.blend, steps=steps)


def _source(config: RunConfig) -> Parts:
    assert config.edit.run is not None
    return kept_latents(RunFolder(Path(config.edit.run)), field="edit.run")
