"""Checkpoints of a run: when they are written, and the state that a run resumes from."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vinfinity.config import CheckpointConfig, parse_interval
from vinfinity.denoise.selection import Selection
from vinfinity.denoise.state import State
from vinfinity.errors import DamagedError, InputError, VinfinityError
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.spans import spans
from vinfinity.parallel.teams import Team
from vinfinity.parallel.votes import Vote, Votes
from vinfinity.runs.folder import MANIFEST, RunFolder
from vinfinity.runs.parts import Parts, undamaged_parts
from vinfinity.runs.together import FrameTensors, write_together
from vinfinity.system.progress import Progress

# with `auto`: minimum seconds between checkpoints, and the interval as a multiple of the last checkpoint's cost
SHORTEST_INTERVAL = 60.0
COST_FACTOR = 60


@dataclass(frozen=True)
class CheckpointPlan:
    """What a run saves, and when.

    selection: the frames that the run computes. steps: the number of denoising steps. kept: yields the frames that an
    edit keeps from an earlier run. reuse_interval: checkpoints follow a multiple of this number of steps, because
    reused features are not saved.
    """

    selection: Selection
    steps: int
    config: CheckpointConfig
    kept: Callable[[], Iterable[FrameTensors]] = lambda: ()
    reuse_interval: int = 1


class Checkpoints:
    """The checkpoints of a run in progress, on one rank. All ranks make the same calls.

    team: the positions of this rank's frames among the selected ones, and whether it writes them or another rank does.
    """

    def __init__(
        self, folder: RunFolder, plan: CheckpointPlan, *, ranks: Ranks, team: Team, progress: Progress
    ) -> None:
        self._folder, self._plan = folder, plan
        self._ranks, self._team, self._progress = ranks, team, progress
        self._identity = folder.identity()
        self._unit, self._every = parse_interval(plan.config.every)
        self._last, self._cost = time.monotonic(), 0.0
        self._wanted = False
        self._final: Parts | None = None

    # ---- while denoising ----

    def vote(self, finite: bool) -> Vote:
        """Return this rank's vote in a step. finite: whether its prediction has no NaN or infinite values."""
        return Vote(finite, checkpoint_due=self._due(), stop=self._ranks.shutdown.requested is not None)

    def after(self, state: State, votes: Votes) -> bool:
        """Write a checkpoint after a step if one is due or a shutdown was requested; return whether it was written.

        Raises OutputError on all ranks if any rank cannot write.
        """
        if self._ranks.is_first:
            self._folder.event("step", step=state.step)
        due = votes.checkpoint_due if self._unit != "steps" else state.step % int(self._every) == 0
        self._wanted |= votes.stop or due
        if not self._wanted or state.step % self._plan.reuse_interval or state.step == self._plan.steps:
            return False
        started = time.monotonic()
        tensors = state.tensors
        pieces = [(self._team.held, tensors)] if self._team.writes else []
        folder = self._folder.checkpoints / f"step-{state.step:04d}"
        written = self._write(folder, pieces, step=state.step, names=tuple(tensors))
        self._last, self._wanted = time.monotonic(), False
        self._cost = self._last - started
        if self._ranks.is_first:
            size = sum(part.bytes for part in written.parts)
            self._folder.event("checkpoint", step=state.step, seconds=round(self._cost, 3), bytes=size)
            for old in self._folders()[: -self._plan.config.keep]:
                shutil.rmtree(old, ignore_errors=True)
        return True

    def finish(self, state: State) -> Parts:
        """Write the final latents, unless they exist already, and delete the checkpoints. Raises OutputError."""
        latents = self._final
        if latents is None:
            latents = self._write(
                self._folder.latents, self._final_pieces(state), step=state.step, names=("x",)
            )
            if self._ranks.is_first:
                self._folder.event("latents", bytes=sum(part.bytes for part in latents.parts))
        if self._ranks.is_first:
            shutil.rmtree(self._folder.checkpoints, ignore_errors=True)
        return latents

    def _due(self) -> bool:
        elapsed = time.monotonic() - self._last
        if self._unit == "auto":
            return elapsed >= max(SHORTEST_INTERVAL, COST_FACTOR * self._cost)
        return self._unit == "seconds" and elapsed >= self._every

    def _final_pieces(self, state: State) -> Iterator[FrameTensors]:
        """Yield this rank's pieces of the finished video: the frames it generated, and on rank 0 the kept frames."""
        selection = self._plan.selection
        own = selection.of(self._team.held)
        generated = [frame for frame in own if self._team.writes and frame in selection.generated]
        for span in spans(generated):
            at = own.index(span.start)
            yield span, {"x": state.x[:, :, at : at + len(span)]}
        if self._ranks.is_first:
            yield from self._plan.kept()

    def _write(
        self, folder: Path, pieces: Iterable[FrameTensors], *, step: int, names: tuple[str, ...]
    ) -> Parts:
        """Write this rank's pieces, see `write_together`; on failure, delete an unfinished folder."""
        try:
            return write_together(
                folder,
                pieces,
                ranks=self._ranks,
                step=step,
                settings=self._identity,
                tensors=names,
                seeds=self._plan.selection.seeds,
            )
        except VinfinityError:
            # if a rank is lost after the manifest was written, the checkpoint is complete and stays
            if self._ranks.is_first and not (folder / MANIFEST).exists():
                # an unfinished checkpoint may take up the last of the disk space
                shutil.rmtree(folder, ignore_errors=True)
            raise

    # ---- when a run resumes ----

    def restore(self) -> State | None:
        """Return the state to resume from, with this rank's frames, on the CPU; None if nothing was saved.

        The state comes from the final latents, or else from the newest undamaged checkpoint. Damaged ones are reported
        and deleted. Raises InputError if it was computed with other settings.
        """
        newest = self._resumed_from()
        if newest is None:
            return None
        self._final = newest if newest.folder == self._folder.latents else None
        held = self._team.held
        frames = self._plan.selection.of(held) if self._final else held
        tensors: dict[str, Tensor] = {name: newest.pick(frames, name=name)[None] for name in newest.tensors}
        return State(step=newest.step, **tensors)

    def final(self) -> Parts:
        """Return the final latents of a run that is only decoded, and delete the checkpoints.

        Raises InputError if there are none.
        """
        latents = self._resumed_from()
        if latents is None or latents.folder != self._folder.latents:
            raise self._folder.no_latents()
        if self._ranks.is_first:
            shutil.rmtree(self._folder.checkpoints, ignore_errors=True)
        return latents

    def _resumed_from(self) -> Parts | None:
        """Return the final latents, or else the newest undamaged checkpoint; None if nothing was saved.

        Raises InputError if they were computed with other settings.
        """
        newest = self._ranks.on_first(self._newest)
        if newest is None:
            return None
        if newest.settings != self._identity:
            problem = "was computed with other settings"
            remedy = "start over with `vinfinity generate --overwrite`"
            raise InputError("run", newest.folder, remedy, problem=problem)
        if self._ranks.is_first:
            self._folder.event("resumed", step=newest.step, ranks=self._ranks.size)
            self._progress.note(f"resuming after step {newest.step} of {self._plan.steps}")
        return newest

    def _newest(self) -> Parts | None:
        """Return the final latents if undamaged, or else the newest undamaged checkpoint. Reads all of its bytes."""
        for path in [*self._folders(finished=False), self._folder.latents][::-1]:
            parts = undamaged_parts(path, damaged=self._damaged)
            if parts is not None:
                return parts
        return None

    def _damaged(self, error: DamagedError) -> None:
        self._folder.event("damaged", message=error.message)
        self._progress.warn(f"{error.message}; resuming from the checkpoint before it")

    def _folders(self, *, finished: bool = True) -> list[Path]:
        """Return the checkpoint folders, newest last. finished: leave out those without a manifest."""
        folders = sorted(self._folder.checkpoints.glob("step-*"))
        return [path for path in folders if not finished or (path / MANIFEST).exists()]
