"""Decoding the final latents of a run again, with another decoder, codec or quality."""

import time
from pathlib import Path

from vinfinity.config import RunConfig
from vinfinity.decoding import decode_to_files
from vinfinity.job_report import without_effect
from vinfinity.networks import Networks
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.runs.earlier import final_latents
from vinfinity.runs.files_record import record_of_files
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.runs.settings import own_video
from vinfinity.session import locked
from vinfinity.system.folders import absolute
from vinfinity.system.progress import Progress
from vinfinity.system.signals import Shutdown
from vinfinity.task import Summary, Task


def decode_again(
    config: RunConfig, folder: RunFolder, destination: Destination, *, shutdown: Shutdown | None = None
) -> Summary | None:
    """Decode the final latents of a run to the files of `destination`, on one rank or several.

    Returns None on ranks other than 0. Raises InputError if the run has no final latents yet.
    """
    final_latents(folder)
    is_own = absolute(destination.video) == absolute(own_video(folder))
    unfinished = folder.decoded if is_own else folder.decoded_of(destination.video)
    task = Task.of(config, destination, latents=folder)
    return launch(
        decode_on_rank,
        (task, folder, unfinished),
        gpus=config.gpus,
        device=config.device,
        timeout=config.parallel.timeout,
        shutdown=shutdown,
    )


def decode_on_rank(payload: tuple[Task, RunFolder, Path], ranks: Ranks) -> Summary | None:
    """Do one rank's part of decoding a run again."""
    (task, folder, unfinished), started = payload, time.monotonic()
    facts = {name: task.job.facts[name] for name in ("decoder", "version")}
    with (
        task.messages(),
        ranks.shutdown.checked(),
        locked(folder, ranks, facts=facts),
        Progress(enabled=ranks.is_first, log=folder.log) as progress,
    ):
        ranks.shutdown.message = "stopped while decoding; the run and its latents are unchanged"
        ranks.check_shutdown()
        for concern in without_effect(task.job, "decode."):
            progress.warn(concern)
        latents = final_latents(folder)
        latents.verify()
        decode_to_files(task, latents, Networks(ranks.device), ranks, progress, unfinished=unfinished)
        if not ranks.is_first:
            return None
        if task.destination.folder.path.resolve() == folder.path.resolve():
            made = record_of_files(folder, task.job.config, task.destination)
            folder.write_record({**(folder.record() or {}), **made})
        folder.event("decoded", video=str(task.destination.video))
        return task.summary(ranks, seconds=time.monotonic() - started)
