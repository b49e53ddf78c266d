"""What a launcher sends to every rank of a run, and what rank 0 returns."""

import contextlib
import os
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from vinfinity.config import RunConfig
from vinfinity.job import Job, prepare
from vinfinity.media.watch import VideoFigures
from vinfinity.parallel.devices import peak_memory
from vinfinity.parallel.place import find_place
from vinfinity.parallel.ranks import Ranks
from vinfinity.runs.earlier import resumed_latents
from vinfinity.runs.first_pass import first_pass as find_first_pass
from vinfinity.runs.first_pass import naming_first_pass
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.system.progress import messages_shown, terminal_console


@dataclass(frozen=True)
class Task:
    """What the launcher sends to every rank.

    decode: whether to decode the final latents to files. shown: whether rank 0 shows messages on its terminal.
    first_pass: the task of the first pass, if there is one whose result is still needed.
    """

    job: Job
    destination: Destination
    decode: bool
    shown: bool
    first_pass: "Task | None" = None

    @classmethod
    def of(
        cls,
        config: RunConfig,
        destination: Destination,
        *,
        latents: RunFolder | None = None,
        decode: bool = True,
        like: "Task | None" = None,
    ) -> "Task":
        """Check a configuration once for all ranks, and return its task.

        latents: the run whose final latents are decoded, by default the one that `config` resumes if it has them; the
        weights and noise that they were made with are those on record, whatever happened to these files since. None
        computes latents. like: a task whose weights were just checked, see `prepare`. Raises InputError.
        """
        first_pass = None
        latents = latents or resumed_latents(config, destination.folder)
        before = find_first_pass(config, destination.folder) if latents is None else None
        if before is not None:
            with naming_first_pass():
                checked = None if like is None else like.first_pass
                first_pass = cls.of(before, Destination.of(before), like=checked)
        job = prepare(
            config,
            find_place(os.environ),
            like=None if like is None else like.job,
            denoise=latents is None,
        )
        if latents is not None:
            record = latents.record() or {}
            job = replace(
                job,
                weights_digest=record.get("weights", job.weights_digest),
                noise_digest=record.get("noise", job.noise_digest),
            )
        return cls(job, destination, decode, shown=terminal_console() is not None, first_pass=first_pass)

    @property
    def jobs(self) -> list[Job]:
        """The job of this task, then that of its first pass."""
        return [self.job] if self.first_pass is None else [self.job, *self.first_pass.jobs]

    @property
    def work(self) -> float:
        """The relative amount of computation, which divides the progress bar between two passes."""
        config = self.job.config
        width, height = config.resolution
        own = float(config.frames * len(self.job.sampler.timesteps) * width * height)
        return own if self.first_pass is None else own + self.first_pass.work

    def messages(self) -> contextlib.AbstractContextManager[None]:
        """Show messages on this rank's terminal if the caller's process does."""
        return messages_shown() if self.shown else contextlib.nullcontext()

    def summary(self, ranks: Ranks, *, seconds: float, figures: VideoFigures | None = None) -> "Summary":
        """Return what was made, for the user."""
        config = self.job.config
        return Summary(
            out=self.destination.video,
            sheet=self.destination.sheet,
            frames=config.frames,
            size=config.resolution,
            fps=config.fps,
            seconds=seconds,
            peak_memory=peak_memory(ranks.device).reserved,
            figures=figures,
        )


@dataclass(frozen=True)
class Summary:
    """What a run made.

    seconds: the wall time. peak_memory: the most bytes that rank 0 held on its GPU, or in its process on a CPU.
    figures: inexpensive measures of the decoded video, with warnings about what stands out.
    """

    out: Path
    sheet: Path | None
    frames: int
    size: tuple[int, int]
    fps: Fraction | int
    seconds: float
    peak_memory: int
    figures: VideoFigures | None = None
