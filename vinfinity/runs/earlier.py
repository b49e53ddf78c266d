"""The earlier run of a redo or extend, opened once: the frames to keep, and what guides the frames around them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.config import RunConfig
from vinfinity.denoise.kept_frames import KeptFrames, kept_until
from vinfinity.denoise.prompts import PromptSchedule
from vinfinity.denoise.selection import Selection, select_around
from vinfinity.denoise.state import Sampler
from vinfinity.errors import DamagedError, InputError
from vinfinity.models.geometry import LatentGeometry
from vinfinity.parallel.spans import spans
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.parts import Parts, in_pieces, read_manifest
from vinfinity.runs.together import FrameTensors


def final_latents(folder: RunFolder, *, field: str = "run") -> Parts:
    """Return the final latents of a run; reads only their manifest. Raises InputError if there are none."""
    try:
        return read_manifest(folder.latents)
    except DamagedError as error:
        raise folder.no_latents(field=field, reason=error.message) from None


def resumed_latents(config: RunConfig, folder: RunFolder) -> RunFolder | None:
    """Return `folder` if `config` resumes its run, and the final latents are there, undamaged; None otherwise.

    Such a run is only decoded. Raises OutputError if they cannot be read.
    """
    if not config.resume or folder.record() is None:
        return None
    try:
        read_manifest(folder.latents).verify()
    except DamagedError:
        return None
    return folder


@dataclass(frozen=True)
class EarlierRun:
    """The run that a redo or extend starts from.

    latents: the run's final latents. redo: the latent frames to regenerate. blend: the number of latent frames at each
    end of them that leave the earlier video gradually. context: the number of latent frames on either side that guide
    the new ones. loop: whether the last frame of the new video leads into the first. borders: the earlier video's
    borders by kind, each as the first latent frame after it.
    """

    latents: Parts
    redo: range
    blend: int
    context: int
    loop: bool = False
    borders: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def open(cls, config: RunConfig, geometry: LatentGeometry) -> "EarlierRun | None":
        """Open the earlier run that `config` edits; return None for a new video. geometry: the model's latent grid.

        Raises InputError if the run has no latents, or does not match `config`.
        """
        edit = config.edit
        if edit.run is None:
            return None
        folder = RunFolder(Path(edit.run))
        latents = final_latents(folder, field="edit.run")
        latent = geometry.latent_size(config.resolution)
        c, _, h, w = latents.read(range(1)).shape
        if (c, h, w) != latent:
            problem = f"holds latents of {c}x{h}x{w}; this video needs {'x'.join(map(str, latent))}"
            raise InputError("edit.run", edit.run, "keep its model and size", problem=problem)
        earlier_frames = geometry.frames(latents.frames)
        # the last latent frame may cover more frames than the video has
        shown = min(earlier_frames, config.frames)
        if edit.span.stop > shown:
            problem = f"goes beyond the run's {shown} frames"
            raise InputError("edit.redo", edit.redo, "name frames of that run", problem=problem)
        if geometry.latent_frames(config.frames) < latents.frames:
            problem = f"is less than the run's {earlier_frames} frames"
            raise InputError("frames", config.frames, "keep all of them", problem=problem)
        if not edit.span and geometry.latent_frames(config.frames) == latents.frames:
            problem = f"adds nothing to the {earlier_frames} frames that the run's latents hold"
            raise InputError(
                "frames", config.frames, f"use at least {earlier_frames + 1} in all", problem=problem
            )
        if config.loop and config.frames > earlier_frames:
            remedy = "turn it off with loop=false, or generate a longer loop"
            raise InputError("loop", True, remedy, problem="has no end to extend")
        per_latent = geometry.time_downscale
        return cls(
            latents,
            redo=geometry.latent_span(edit.span),
            blend=-(-edit.blend // per_latent),
            context=-(-edit.context // per_latent),
            loop=config.loop,
            borders={
                kind: [geometry.latent_frames(frame + 1) - 1 for frame in frames]
                for kind, frames in folder.borders().items()
            },
        )

    def select(self, config: RunConfig, prompts: PromptSchedule, *, steps: int) -> Selection:
        """Return the frames that the edit computes. prompts: the prompts of the new video.

        Kept frames start from the noise that they were first generated from.
        """
        known, total = self.latents.frames, prompts.frames
        until = self._kept_until(range(total), steps=steps)
        seeds = [config.seed] * total
        for start, stop, seed in self.latents.seeds:
            seeds[start:stop] = [seed if until[frame] else config.seed for frame in range(start, stop)]
        return select_around(
            total,
            [*self.redo, *range(known, total)],
            context=self.context,
            anchors=config.attention.anchors,
            trained_frames=config.attention.trained_frames,
            seeds=seeds,
            scenes=prompts.scenes,
            loop=self.loop,
        )

    def sampler(
        self, sampler: Sampler, own: Sequence[int], latent: tuple[int, int, int], *, device: torch.device
    ) -> Sampler:
        """Wrap `sampler` to keep frames at the earlier latents. own: this rank's frames. Raises DamagedError."""
        self.latents.verify()
        clean = torch.zeros(1, latent[0], len(own), *latent[1:])
        earlier = [frame for frame in own if frame < self.latents.frames]
        if earlier:
            clean[0, :, : len(earlier)] = self.latents.pick(earlier)
        until = self._kept_until(own, steps=len(sampler.timesteps))
        return KeptFrames(sampler, clean.to(device), until.to(device))

    def kept_pieces(self) -> Iterator[FrameTensors]:
        """Yield the kept frames, a bounded number at a time: tensors (1, c, f, h, w)."""
        for span in spans(frame for frame in range(self.latents.frames) if frame not in self.redo):
            for piece in in_pieces(span):
                yield piece, {"x": self.latents.read(piece)[None]}

    def _kept_until(self, frames: Sequence[int], *, steps: int) -> Tensor:
        return kept_until(
            frames, known=self.latents.frames, redo=self.redo, blend=self.blend, steps=steps, loop=self.loop
        )
