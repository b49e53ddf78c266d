"""What a launcher sends to every rank of a run, and what comes back from rank 0."""

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
from vinfinity.runs.first_pass import first_pass, naming_first_pass
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.system.progress import messages_shown, terminal_console


@dataclass(frozen=True)
class Task:
    """What the launcher sends to every rank.

    decode: whether the final latents are decoded to files. shown: whether rank 0 shows messages on its terminal.
    first: the first pass, if there is one whose result is still needed.
    """

    job: Job
    destination: Destination
    decode: bool
    shown: bool
    first: "Task | None" = None

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
        """The task for a configuration, checked here once for all ranks that are started.

        latents: the run whose final latents are decoded, by default the one that `config` resumes if it has them; what
        they were made with is as recorded, whatever became of those files since. None computes latents. like: a task
        whose weights were checked just now, see `prepare`. Raises InputError.
        """
        folder, first = destination.folder, None
        latents = latents or resumed_latents(config, folder)
        before = first_pass(config, folder) if latents is None else None
        if before is not None:
            with naming_first_pass():
                first = cls.of(before, Destination.of(before), like=None if like is None else like.first)
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
        return cls(job, destination, decode, shown=terminal_console() is not None, first=first)

    @property
    def work(self) -> float:
        """How much there is to compute, in any unit."""
        config = self.job.config
        width, height = config.resolution
        own = float(config.frames * len(self.job.sampler.timesteps) * width * height)
        return own if self.first is None else own + self.first.work

    def messages(self) -> contextlib.AbstractContextManager[None]:
        """Show messages on this rank's terminal if the caller's process does."""
        return messages_shown() if self.shown else contextlib.nullcontext()

    def summary(self, ranks: Ranks, *, seconds: float, figures: VideoFigures | None = None) -> "Summary":
        """What was made, for the user."""
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

    seconds: wall time. peak_memory: the most bytes that rank 0 has held, of its GPU if it has one, else of the process.
    figures: cheap ones of what was decoded, with warnings of what stands out.
    """

    out: Path
    sheet: Path | None
    frames: int
    size: tuple[int, int]
    fps: Fraction | int
    seconds: float
    peak_memory: int
    figures: VideoFigures | None = None
