"""One rank's part of a run: the objects that it uses from start to finish."""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vinfinity.config import to_yaml
from vinfinity.denoise.state import State
from vinfinity.errors import (
    BusyError,
    InputError,
    OutOfMemoryError,
    OutputError,
    RankError,
    Stopped,
    UnexpectedError,
    VinfinityError,
)
from vinfinity.job import Job, version
from vinfinity.job_report import concerns
from vinfinity.machine.record import describe_rank, describe_software
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.teams import Team
from vinfinity.parallel.votes import Votes
from vinfinity.runs.checkpoints import CheckpointPlan, Checkpoints
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.runs.settings import with_absolute_paths
from vinfinity.runs.start import Start, check_same, how_to_start
from vinfinity.system.overall import Overall
from vinfinity.system.progress import Progress, add_line

# exit codes of runs that can resume from their last checkpoint
RESUMABLE = {kind.exit_code for kind in (UnexpectedError, OutOfMemoryError, RankError, OutputError, Stopped)}


@dataclass(frozen=True)
class Session:
    """What one rank uses from the start of a run to its end.

    start: whether the run is new, resumes or is already finished. machine: the software and hardware of all ranks, for
    the record. team, exchange: the ranks that share the video with this one, and the way to reach them. resumed: the
    folder that users resume, which is that of the whole run if this is its first pass.
    """

    start: Start
    machine: Mapping[str, object]
    folder: RunFolder
    ranks: Ranks
    team: Team
    exchange: FrameExchange
    checkpoints: Checkpoints
    progress: Progress
    resumed: RunFolder

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        job: Job,
        destination: Destination,
        ranks: Ranks,
        *,
        overall: Overall | None = None,
        share: tuple[float, float] = (0.0, 1.0),
        within: "Session | None" = None,
    ) -> Iterator["Session"]:
        """Lock the run folder, agree with the other ranks, and start or resume the run; release all of it at the end.

        overall: the progress of all videos, if this is one of several. share: see `Progress`. within: the session of
        the whole run, if this is its first pass.
        Raises RankError if ranks differ in settings or weights, BusyError if another run uses the folder, InputError if
        the folder holds a run of other settings or weights, or if a rank cannot see it.
        """
        folder = destination.folder
        with ranks.shutdown.checked(), locked(folder, ranks, facts=job.facts):
            machine = _machine(job, ranks)
            start = _start(job, destination, ranks, machine)
            with contextlib.ExitStack() as shown:
                if within is None:
                    progress = Progress(enabled=ranks.is_first, log=folder.log, overall=overall, share=share)
                    shown.enter_context(progress)
                else:
                    progress = within.progress.of_part("first pass", log=folder.log)
                team = ranks.team(
                    len(job.selection.frames), split=job.splits_branches, grouped=job.grouped(ranks.device)
                )
                yield cls(
                    start=start,
                    machine=machine,
                    folder=folder,
                    ranks=ranks,
                    team=team,
                    exchange=team.exchange(),
                    checkpoints=Checkpoints(
                        folder,
                        CheckpointPlan(
                            job.selection,
                            steps=len(job.sampler.timesteps),
                            config=job.config.checkpoint,
                            kept=job.kept_pieces,
                            reuse_interval=job.config.reuse.interval,
                        ),
                        ranks=ranks,
                        team=team,
                        progress=progress,
                    ),
                    progress=progress,
                    resumed=folder if within is None else within.resumed,
                )

    def announce(self, job: Job) -> None:
        """Warn about settings and text without effect, and say how many frames an edit computes."""
        for concern in concerns(job):
            self.progress.warn(concern)
        generated, computed = len(job.selection.generated), len(job.selection.frames)
        if computed > generated:
            guides = computed - generated
            unit = "latent frames" if job.card.geometry.time_downscale > 1 else "frames"
            self.progress.note(
                f"generating {generated} of {job.latent_frames} {unit}, guided by {guides} others"
            )

    def enter(self, phase: str) -> None:
        """Begin a phase in which a shutdown loses nothing. Raises Stopped if one was requested on any rank before."""
        self._say_where(phase)
        self.ranks.check_shutdown()

    def after_step(self, state: State, votes: Votes, *, steps: int) -> None:
        """Write a checkpoint if one is due. Raises Stopped, after writing it, if any rank got a shutdown request."""
        if self.checkpoints.after(state, votes):
            self._say_where(f"after step {state.step} of {steps}")
            if votes.stop:
                self.ranks.shutdown.stop()

    def _say_where(self, where: str) -> None:
        """Set the message of a shutdown from here on: where the run stopped, and how to resume it."""
        self.ranks.shutdown.message = f"stopped {where}; {self.resumed.command('resume')} resumes the run"


@contextlib.contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """Record an error in the run folder, and add how to resume to its message."""
    try:
        yield
    except VinfinityError as error:
        record_end(folder, error)
        raise


def record_end(folder: RunFolder, error: VinfinityError) -> None:
    """Record an error in the run folder, and add how to resume to its message."""
    # these errors leave the folder unchanged
    if isinstance(error, InputError | BusyError):
        return
    resumes = f"{folder.command('resume')} resumes"
    interrupted = error.exit_code in RESUMABLE
    if interrupted and folder.holds_work() and resumes not in error.message:
        error.message += f"; {resumes} from the last checkpoint"
    folder.event("ended", message=error.message, exit_code=error.exit_code)
    add_line(folder.log, error.message)


@contextlib.contextmanager
def locked(folder: RunFolder, ranks: Ranks, *, facts: Mapping[str, str]) -> Iterator[None]:
    """Keep other runs out of the folder until the block ends on all ranks. Ranks must agree on the facts."""
    with contextlib.ExitStack() as locks:
        if ranks.is_first:
            locks.enter_context(folder.locked(first=True))
        # the other ranks follow rank 0
        ranks.agree(facts)
        if not ranks.is_first:
            locks.enter_context(folder.locked(first=False))
        yield


def _start(job: Job, destination: Destination, ranks: Ranks, machine: Mapping[str, object]) -> Start:
    """Decide again how to start, now that the folder is locked; rank 0 prepares the folder of a new run."""
    folder = destination.folder
    start: Start | None = None
    if ranks.is_first:
        start = how_to_start(job.config, destination)
        if start == "new":
            settings = dataclasses.replace(with_absolute_paths(job.config, destination), gpus=ranks.size)
            command = {"command": shlex.join(sys.argv), "ranks": ranks.size, "device": str(ranks.device)}
            folder.begin(settings=to_yaml(settings), record=job.provenance() | command | {"machine": machine})
        elif start == "resume":
            # nothing is written here: the disk may be full of what this run is about to delete
            check_same(folder, weights=job.weights_digest, noise=job.noise_digest)
        folder.event("started", how=start, ranks=ranks.size, version=version(), machine=machine)
    start = ranks.all_gather(start)[0]
    assert start is not None
    for rank, visible in enumerate(ranks.all_gather(folder.settings.is_file())):
        if not visible:
            remedy = "put the video on a file system that all nodes share"
            raise InputError("out", folder.path, remedy, problem=f"cannot be seen by rank {rank}")
    return start


def _machine(job: Job, ranks: Ranks) -> dict[str, object]:
    """Return the software and hardware of all ranks, for the record."""
    machines = ranks.all_gather(describe_rank(ranks.device))
    return {**describe_software(ranks.device, job.dtype(ranks.device)), "ranks": machines}
