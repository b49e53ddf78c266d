"""When the state of denoising is kept, and where a run goes on."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from vinfinity.config import CheckpointConfig, parse_interval
from vinfinity.denoise.samplers import State
from vinfinity.errors import InputError, OutputError, Stopped, VinfinityError
from vinfinity.parallel.pulse import Pulse
from vinfinity.parallel.ranks import Ranks
from vinfinity.runs.edit import Footage
from vinfinity.runs.folder import MANIFEST, RunFolder
from vinfinity.runs.parts import (
    DamagedError,
    Part,
    Parts,
    read_manifest,
    stretches,
    write_manifest,
    write_part,
)
from vinfinity.system.progress import Progress
from vinfinity.system.signals import Stops

T = TypeVar("T")
Piece = tuple[range, Mapping[str, Tensor]]  # frames, and tensors (1, c, f, h, w) of them
SHORTEST = 60.0  # seconds between checkpoints in `auto`
SHARE = 60  # in `auto`, at least so many times what the last one took: 1 / 60 of the time


@dataclass(frozen=True)
class Wish:
    """What a rank wants done at the next boundary between steps: a checkpoint, or an end."""

    due: bool
    stop: bool


class Checkpoints:
    """The checkpoints of a run under way, on this rank; all ranks make the same calls.

    footage: the frames that are computed. held: which of them are this rank's, by their places; it writes them where
    `writes`, else another rank does. kept: gives the other frames of the video, some at a time. steps: how many there
    are. settings: the run's identity. aligned: whether a run may go on after that many steps and give the same video.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        ranks: Ranks,
        footage: Footage,
        held: range,
        writes: bool,
        kept: Callable[[], Iterable[Piece]] = list,
        steps: int,
        settings: str,
        config: CheckpointConfig,
        stops: Stops,
        progress: Progress,
        aligned: Callable[[int], bool] = lambda step: True,
    ) -> None:
        self.folder, self.ranks, self.held, self.steps = folder, ranks, held, steps
        self.footage, self.writes, self.kept = footage, writes, kept
        self.settings, self.config = settings, config
        self.stops, self.progress, self.aligned = stops, progress, aligned
        self.pulse = Pulse(ranks, self._wish)
        self._unit, self._every = parse_interval(config.every)
        self._last, self._cost = time.monotonic(), 0.0
        self._wanted = False
        self._final: Parts | None = None

    # ---- while denoising ----

    def keep(self, state: State) -> None:
        """Writes a checkpoint after a step, where one is due. Raises Stopped after one that was asked for by a signal.

        The ranks agreed on it in the step's pulse. Raises OutputError, on all ranks, where any could not write.
        """
        if self.ranks.first:
            self.folder.event("step", step=state.step)
        stop = any(wish.stop for wish in self.pulse.heard)
        due = self.pulse.heard[0].due if self._unit != "steps" else state.step % int(self._every) == 0
        self._wanted |= stop or due
        if not self._wanted or not self.aligned(state.step) or state.step == self.steps:
            return
        started = time.monotonic()
        tensors = {"x": state.x} | ({} if state.clean is None else {"clean": state.clean})
        written = [(self.held, tensors)] if self.writes else []
        folder = self.folder.checkpoints / f"step-{state.step:04d}"
        made = self._write(folder, written, step=state.step, names=tuple(tensors))
        self._last, self._wanted = time.monotonic(), False
        self._cost = self._last - started
        if self.ranks.first:
            size = sum(part.bytes for part in made.parts)
            self.folder.event("checkpoint", step=state.step, seconds=round(self._cost, 3), bytes=size)
            for old in self._found()[: -self.config.keep]:
                shutil.rmtree(old, ignore_errors=True)
        self.stops.kept = self._said(state.step)
        if stop:
            raise Stopped(self.stops.kept)

    def finish(self, state: State) -> Parts:
        """Writes the final latents, where they are not kept already, and drops the checkpoints. Raises OutputError."""
        made = self._final or self._write(
            self.folder.latents, self._pieces(state), step=state.step, names=("x",)
        )
        if self.ranks.first and self._final is None:
            self.folder.event("latents", bytes=sum(part.bytes for part in made.parts))
        if self.ranks.first:
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        self.stops.kept = f"stopped while decoding; `vinfinity resume {self.folder.path}` goes on"
        return made

    def _wish(self) -> Wish:
        elapsed = time.monotonic() - self._last
        due = {
            "seconds": elapsed >= self._every,
            "auto": elapsed >= max(SHORTEST, SHARE * self._cost),
        }.get(self._unit, False)
        return Wish(due=due, stop=self.stops.asked is not None)

    def _said(self, step: int) -> str:
        return f"stopped after step {step} of {self.steps}; `vinfinity resume {self.folder.path}` goes on"

    def _pieces(self, state: State) -> Iterator[Piece]:
        """What this rank writes of the finished video: frames that it made, and the first one those that were kept."""
        own = self.footage.of(self.held)
        for stretch in stretches(frame for frame in own if self.writes and frame in self.footage.made):
            at = own.index(stretch.start)
            yield stretch, {"x": state.x[:, :, at : at + len(stretch)]}
        if self.ranks.first:
            yield from self.kept()

    def _write(self, folder: Path, pieces: Iterable[Piece], *, step: int, names: tuple[str, ...]) -> Parts:
        """Each rank its pieces, then rank 0 the manifest; nobody goes on before it is on the disk, or has failed."""
        written: list[Part] | VinfinityError
        try:
            written = [write_part(folder, frames, tensors) for frames, tensors in pieces]
        except VinfinityError as error:  # also of an earlier run's files, which are read for it
            written = error
        parts = [part for one in self.ranks.collect(written) for part in self._checked(one, folder)]
        sealed: Parts | VinfinityError | None = None
        if self.ranks.first:
            try:
                sealed = write_manifest(
                    folder,
                    parts,
                    step=step,
                    settings=self.settings,
                    tensors=names,
                    seeds=self.footage.seeds,
                )
            except OutputError as error:
                sealed = error
        made = self._checked(self.ranks.collect(sealed)[0], folder)
        assert made is not None
        return made

    def _checked(self, told: T | VinfinityError, folder: Path) -> T:
        if isinstance(told, VinfinityError):
            if self.ranks.first:
                # what an unfinished one takes up may be all the room that is left
                shutil.rmtree(folder, ignore_errors=True)
            raise told
        return told

    # ---- when a run goes on ----

    def restore(self) -> State | None:
        """The state to go on from, this rank's frames of it, on the CPU; None where nothing was kept.

        The final latents, else the newest checkpoint that is whole; damaged ones are told of and removed. Raises
        InputError where what was kept belongs to other settings.
        """
        newest: Parts | None = None
        if self.ranks.first:
            for path in [*self._found(finished=False), self.folder.latents][::-1]:
                newest = newest or self._whole(path)
        newest = self.ranks.collect(newest)[0]
        if newest is None:
            return None
        if newest.settings != self.settings:
            raise InputError(
                "run",
                newest.folder,
                "start anew with --overwrite",
                problem="was computed with other settings",
            )
        if self.ranks.first:
            self.folder.event("resumed", step=newest.step, ranks=self.ranks.size)
            self.progress.note(f"goes on after step {newest.step} of {self.steps}")
        self.stops.kept = self._said(newest.step)
        self._final = newest if newest.folder == self.folder.latents else None
        frames = self.footage.of(self.held) if self._final else self.held
        tensors: dict[str, Tensor] = {name: newest.pick(frames, name=name)[None] for name in newest.tensors}
        return State(step=newest.step, **tensors)

    def _whole(self, path: Path) -> Parts | None:
        """The parts in a folder where they are as they were written; what is left of others is removed."""
        if not (path / MANIFEST).exists():
            shutil.rmtree(path, ignore_errors=True)  # the run ended while it was written
            return None
        try:
            parts = read_manifest(path)
            parts.verify()
            return parts
        except DamagedError as error:
            self.folder.event("damaged", message=error.message)
            self.progress.warn(f"{error.message}; going on from what was kept before it")
            shutil.rmtree(path, ignore_errors=True)
            return None

    def _found(self, *, finished: bool = True) -> list[Path]:
        """The folders of checkpoints, the newest last."""
        found = sorted(self.folder.checkpoints.glob("step-*"))
        return [path for path in found if not finished or (path / MANIFEST).exists()]
