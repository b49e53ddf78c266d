"""The videos of a batch, one after the other, on the same ranks and with the same weights where possible."""

import contextlib
import itertools
import os
import time
import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vinfinity.batch.faults import Faults
from vinfinity.batch.journal import SUFFIX, Journal
from vinfinity.batch.plan import Batch, naming_row
from vinfinity.errors import OutputError, RankError, Stopped, UnexpectedError, VinfinityError, described
from vinfinity.networks import Networks
from vinfinity.parallel.launch import launch
from vinfinity.parallel.place import find_place
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.restarts import jobs_of, restarted_by
from vinfinity.run import make_task, make_video
from vinfinity.session import record_end
from vinfinity.system.out_of_memory import named_out_of_memory
from vinfinity.system.overall import Overall
from vinfinity.system.progress import logger, note
from vinfinity.system.signals import Shutdown
from vinfinity.task import Task


@dataclass(frozen=True)
class Failure:
    """A video that failed. row: the row of the batch that it belongs to."""

    video: Path
    row: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class BatchSummary:
    """The outcome of a batch.

    made: the videos made by this call. skipped: the videos that were finished before. seconds: wall time.
    """

    folder: Path
    made: tuple[Path, ...] = ()
    skipped: tuple[Path, ...] = ()
    failed: tuple[Failure, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Entry:
    """A video to make: its name in the folder, its row, and its task for every rank."""

    name: str
    row: str
    task: Task


@dataclass(frozen=True)
class Share:
    """What the launcher sends to every rank.

    entries: the videos to make. total: the number of videos of this process. failed: how many of them have failed.
    """

    entries: tuple[Entry, ...]
    journal: Journal
    total: int
    failed: int


def make_batch(batch: Batch, *, shutdown: Shutdown | None = None) -> BatchSummary | None:
    """Make the videos of a batch that are not finished. A video that fails is reported, and the others are made.

    shutdown: shutdown requests (signals). The batch then stops after writing a checkpoint of the current video. None if
    the caller handles no signals. Returns None on ranks other than 0 that a launcher started.

    Raises InputError if a video cannot be made, before weights are loaded. The batch ends with Stopped, OutputError, or
    RankError if ranks fail for two videos in succession. Another call continues where it ended.
    """
    return _Making(batch, prepare_batch(batch), shutdown).run()


def prepare_batch(batch: Batch) -> tuple[Entry, ...]:
    """Check the unfinished videos of a batch against their models. Loads no weights. Raises InputError.

    Videos are ordered so that those on the same ranks, and among them those with the same weights, follow each other.
    """
    faults, entries = Faults(), list[Entry]()
    like: Task | None = None
    for item in (item for item in batch.items if item.start != "done"):
        with faults.noted(), naming_row(item.origin, item.origins):
            task = like = make_task(item.config, item.destination, like=like)
            entries.append(Entry(item.name, item.origin, task))
    faults.check()
    groups: dict[Hashable, dict[Hashable, list[Entry]]] = {}
    for entry in entries:
        groups.setdefault(_ranks_of(entry), {}).setdefault(_weights_of(entry), []).append(entry)
    return tuple(entry for group in groups.values() for entries in group.values() for entry in entries)


def make_videos(share: Share, ranks: Ranks) -> None:
    """Carry out one rank's part of several videos.

    Raises errors that end the batch. With several ranks, raises the error of any video: other ranks may be waiting for
    this one, so that only new ranks can continue.
    """
    networks = Networks(ranks.device, several=True)
    work = [entry.task.work for entry in share.entries]
    with (
        share.entries[0].task.messages(),
        Overall(work, total=share.total, failed=share.failed, enabled=ranks.is_first) as overall,
    ):
        for entry in share.entries:
            ranks.shutdown.message = "stopped between two videos"
            ranks.check_shutdown()
            overall.begin()
            try:
                with named_out_of_memory(str(ranks)):
                    summary = make_video(entry.task, ranks, networks, overall=overall)
            except Exception as error:
                if ranks.size > 1 or _ends_batch(error):
                    raise
                # in a function: a variable here would keep the frames of the failed video, and with them its tensors
                _pass_over(share, entry, error)
                overall.end(failed=True)
            else:
                if ranks.is_first:
                    seconds = 0.0 if summary is None else round(summary.seconds, 3)
                    share.journal.add("made", entry.name, row=entry.row, seconds=seconds)
                overall.end()


def _pass_over(share: Share, entry: Entry, error: Exception) -> None:
    """Report a video that failed, with the traceback of an unexpected error."""
    known = described(error)
    if isinstance(known, UnexpectedError):
        traceback.print_exc()
    report_failure(share.journal, entry, known)


def report_failure(journal: Journal, entry: Entry, error: VinfinityError) -> None:
    """Log that a video failed, and record it in the journal and in the video's run folder."""
    record_end(entry.task.destination.folder, error)
    logger.error("%s", f"{entry.name} failed: {error.message}")
    journal.add("failed", entry.name, row=entry.row, message=error.message, exit_code=error.exit_code)


def _ends_batch(error: Exception) -> bool:
    """Return whether an error ends the whole batch: a shutdown request, or a file that cannot be written."""
    return isinstance(error, Stopped | OutputError)


def _ranks_of(entry: Entry) -> tuple[Hashable, ...]:
    """Return what videos must have in common to be made by the same ranks."""
    config = entry.task.job.config
    return config.gpus, config.device, config.parallel.timeout


def _weights_of(entry: Entry) -> tuple[Hashable, ...]:
    """Return what videos must have in common to be made with the same loaded networks."""
    job = entry.task.job
    return job.card.folder, job.weights_digest, job.config.lora, job.config.dtype, job.config.compile


@dataclass
class _Making:
    """The launcher's part of a batch."""

    batch: Batch
    entries: tuple[Entry, ...]
    shutdown: Shutdown | None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._place = find_place(os.environ)
        self._writes = self._place is None or self._place.rank == 0
        jobs = jobs_of(os.environ, parent=os.getppid())
        self._journal = Journal(self.batch.folder / f"{self.batch.name}{SUFFIX}", jobs)
        self._since = self._journal.size()
        self._not_retried: Mapping[str, Mapping[str, Any]] = {}
        self._lost_at: int | None = None

    def run(self) -> BatchSummary | None:
        skipped = len(self.batch.items) - len(self.entries)
        if skipped and self._writes:
            note(f"{skipped} of {len(self.batch.items)} videos are finished already")
        if not self.entries:
            return self._summary() if self._writes else None
        with self._journal.locked() if self._writes else contextlib.nullcontext():
            self._not_retried = self._earlier_failures()
            try:
                for _, share in itertools.groupby(self.entries, key=_ranks_of):
                    self._make(tuple(share))
            except VinfinityError as error:
                error.message += f"; {self._so_far()}"
                raise
        return self._summary() if self._writes else None

    def _make(self, share: Sequence[Entry]) -> None:
        """Make videos that the same ranks can make. Several ranks are started again after a video that failed."""
        while left := [entry for entry in share if entry.name not in self._outcomes()]:
            config = left[0].task.job.config
            outcomes = self._outcomes()
            failed = sum(entry["event"] == "failed" for entry in outcomes.values())
            if self.shutdown is not None and self.shutdown.requested is not None:
                raise Stopped("stopped between two videos")
            try:
                return launch(
                    make_videos,
                    Share(tuple(left), self._journal, len(self.batch.items), failed),
                    gpus=config.gpus,
                    device=config.device,
                    timeout=config.parallel.timeout,
                    shutdown=self.shutdown,
                    on_error=lambda error: self._failed(share, error),
                )
            except VinfinityError as error:
                if self._failed(share, error):
                    raise

    def _failed(self, share: Sequence[Entry], error: VinfinityError) -> bool:
        """Record the error of ranks for the video that they were making; return whether it ends the batch."""
        before = self._outcomes()
        current = next((entry for entry in share if entry.name not in before), None)
        if current is None:
            return True
        if _ends_batch(error):
            record_end(current.task.destination.folder, error)
            return True
        if self._writes:
            report_failure(self._journal, current, error)
        lost = isinstance(error, RankError)
        again = lost and self._lost_at == len(before)
        self._lost_at = len(before) + 1 if lost else None
        # this process cannot restart ranks that a launcher started
        return again or (self._place is not None and self._place.size > 1)

    def _outcomes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the journal's lines of this call by video, with those of earlier failures that are not retried."""
        return {**self._not_retried, **self._journal.entries(since=self._since)}

    def _earlier_failures(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the lines of videos that failed before a launcher restarted this job.

        To the user it is one call, which tries each video once.
        """
        names, jobs = {entry.name for entry in self.entries}, self._journal.jobs
        same = {(launcher, jobs[launcher]) for launcher in restarted_by(os.environ) if launcher in jobs}
        return {
            name: line
            for name, line in self._journal.entries().items()
            # older versions did not record the jobs
            if line["event"] == "failed" and name in names and same & line.get("jobs", {}).items()
        }

    def _so_far(self) -> str:
        summary = self._summary()
        made = len(summary.made) + len(summary.skipped)
        failed = f" and {len(summary.failed)} have failed" if summary.failed else ""
        return f"{made} of {len(self.batch.items)} videos are finished{failed}; the same command makes the others"

    def _summary(self) -> BatchSummary:
        outcomes = self._outcomes()
        folder = self.batch.folder
        return BatchSummary(
            folder=folder,
            made=tuple(folder / name for name, line in outcomes.items() if line["event"] == "made"),
            skipped=tuple(folder / item.name for item in self.batch.items if item.start == "done"),
            failed=tuple(
                Failure(folder / name, line["row"], line["message"], line["exit_code"])
                for name, line in outcomes.items()
                if line["event"] == "failed"
            ),
            seconds=time.monotonic() - self.started,
        )
