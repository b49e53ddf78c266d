"""A run from top to bottom: check, launch ranks, denoise, decode, record."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial

from vinfinity.config import RunConfig
from vinfinity.decoding import decode_to_files
from vinfinity.denoise.execution import Execution
from vinfinity.denoising import prepare_denoising
from vinfinity.encoding import encode_input
from vinfinity.figures import borders_in_frames, find_figures
from vinfinity.inputs import initial_state
from vinfinity.job import Job
from vinfinity.media.watch import VideoFigures, VideoWatch
from vinfinity.networks import Networks
from vinfinity.parallel.devices import forget_peak_memory, peak_memory
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.planning.fit import find_fit, refuse_early
from vinfinity.previews import Previews, previews
from vinfinity.runs.files_record import record_of_files
from vinfinity.runs.first_pass import naming_first_pass
from vinfinity.runs.parts import Parts
from vinfinity.runs.paths import Destination
from vinfinity.runs.start import OtherRunError, check_done, check_same, settle_start
from vinfinity.session import Session, record_end, resumable
from vinfinity.system.overall import Overall
from vinfinity.system.signals import Reaction, Shutdown
from vinfinity.task import Summary, Task


def run(
    config: RunConfig,
    destination: Destination | None = None,
    *,
    replaces: bool = True,
    shutdown: Shutdown | None = None,
) -> Summary | None:
    """Generate the video that `config` describes, on all ranks that it asks for or that a launcher started.

    destination: the files to write, if the caller has already called `settle_start` for them. replaces: see
    `settle_start`. shutdown: the shutdown requests that the caller handles; on one, the run writes a checkpoint and
    stops. None if it handles none.
    Returns None on ranks other than 0, and if the run is already finished. Raises VinfinityError.
    """
    if destination is None:
        destination = Destination.of(config)
        config, start = settle_start(config, destination, replaces=replaces)
        if start == "done":
            check_done(config, destination)
            return None
    return launch_run(make_task(config, destination, replaces=replaces), shutdown=shutdown)


def make_task(
    config: RunConfig, destination: Destination, *, like: Task | None = None, replaces: bool = True
) -> Task:
    """Check a run once for all its ranks, after `settle_start` has decided how it starts.

    With `overwrite`, a run with other weights or noise is replaced, just like one with other settings; if only its
    first pass differs, the whole run is replaced. like: see `Task.of`. replaces: see `settle_start`. Raises InputError.
    """
    task = Task.of(config, destination, like=like)
    try:
        if config.resume:
            _check_same(task)
            if task.first_pass is not None:
                with naming_first_pass():
                    _check_same(task.first_pass)
    except OtherRunError:
        if not (config.overwrite and replaces):
            raise
        return Task.of(replace(config, resume=False), destination, like=task)
    return task


def _check_same(task: Task) -> None:
    """Raise OtherRunError if the run in the task's folder was started with other weights or noise."""
    job = task.job
    check_same(task.destination.folder, weights=job.weights_digest, noise=job.noise_digest)


def launch_run(task: Task, *, shutdown: Shutdown | None = None) -> Summary | None:
    """Carry out a task on all its ranks. Returns None on ranks other than 0. Raises VinfinityError."""
    config = task.job.config
    for job in task.jobs:
        if job.denoise:
            refuse_early(job)
    with resumable(task.destination.folder):
        return launch(
            on_rank,
            task,
            gpus=config.gpus,
            device=config.device,
            timeout=config.parallel.timeout,
            shutdown=shutdown,
            on_error=partial(record_end, task.destination.folder),
        )


def on_rank(task: Task, ranks: Ranks) -> Summary | None:
    """Do one rank's part of a run of one video. Returns the summary on rank 0."""
    with task.messages():
        return make_video(task, ranks, Networks(ranks.device))


def make_video(
    task: Task,
    ranks: Ranks,
    networks: Networks,
    *,
    overall: Overall | None = None,
    within: Session | None = None,
) -> Summary | None:
    """Do one rank's part of a video; the code is the same for one rank and for many. Returns the summary on rank 0.

    networks: may hold networks that are loaded already. overall: the progress of all videos, if this is one of several.
    within: the session of the whole run, if this is its first pass. Returns None on other ranks, and if the video is
    already finished.
    """
    job, started = task.job, time.monotonic()
    share = (0.0 if task.first_pass is None else task.first_pass.work / task.work, 1.0)
    forget_peak_memory(ranks.device)
    with Session.open(job, task.destination, ranks, overall=overall, share=share, within=within) as session:
        if session.start == "done":
            session.progress.note(f"{task.destination.video} is finished; nothing to do")
            return None
        session.announce(job)
        if task.first_pass is not None:
            make_video(task.first_pass, ranks, networks, within=session)
        watch = None
        with previews(job, session) as shown:
            if job.denoise:
                latents = denoise_video(job, session, networks, shown)
            else:
                latents = session.checkpoints.final()
                # the next video that is denoised decides which networks are kept
                networks.keep(job, ample=False)
            denoised = time.monotonic()
            session.enter("while decoding")
            if task.decode:
                unfinished = session.folder.decoded
                watch = decode_to_files(
                    task, latents, networks, ranks, session.progress, unfinished=unfinished
                )
        if not ranks.is_first:
            return None
        seconds = {"denoising": denoised - started, "decoding": time.monotonic() - denoised}
        figures = _record_finished(task, session, watch, seconds)
        return task.summary(ranks, seconds=time.monotonic() - started, figures=figures)


def denoise_video(job: Job, session: Session, networks: Networks, shown: Previews | None) -> Parts:
    """Denoise from the prompt or the last checkpoint. Returns the final latents on disk, with facts in run.json.

    Raises Stopped, after writing a checkpoint, if a shutdown was requested.
    """
    ranks, team, checkpoints = session.ranks, session.team, session.checkpoints
    fit = find_fit(job, ranks, loaded=networks.bytes, keep=networks.several)
    networks.keep(job, ample=fit.keeps)
    restored = checkpoints.restore()
    video, pictures = encode_input(job, session, networks, restored)
    state = restored or initial_state(job, job.selection.of(team.held), video)
    done, steps = state.step, len(job.sampler.timesteps)
    session.enter(f"after step {done} of {steps}" if done else "before anything was computed")
    denoising = None
    if done < steps:
        denoising = prepare_denoising(
            job, networks, ranks, team=team, exchange=session.exchange, fit=fit, pictures=pictures, step=done
        )
        # ranks take different times to load their weights
        ranks.barrier()
        ranks.check_shutdown()
    with ranks.shutdown.reacting(Reaction.WAIT):
        if denoising is not None:
            watch = None if shown is None else shown.watch
            loop = denoising.steps_from(state, vote=checkpoints.vote, watch=watch)
            for state, votes in session.progress.track(loop, total=steps - done, label="denoising"):
                session.after_step(state, votes, steps=steps)
            if shown is not None:
                shown.flush()
        # before the latents are complete: a run that resumes with them no longer knows its ranks and edits
        execution = fit.fastest if denoising is None else denoising.execution
        _record_denoised(job, session, execution, steps=steps - done)
        return checkpoints.finish(state)


def _record_denoised(job: Job, session: Session, execution: Execution, *, steps: int) -> None:
    """Record how the denoising steps were carried out: borders, what each rank sent per step, and its peak memory."""
    ranks, folder = session.ranks, session.folder
    sent = ranks.all_gather(session.exchange.counters.per(steps)) if steps else []
    memory = ranks.all_gather(asdict(peak_memory(ranks.device)))
    facts = {
        "borders": borders_in_frames(job, session.team.shards),
        "execution": asdict(execution),
        "communication_per_step": sent,
        "memory": memory,
    }
    if ranks.is_first:
        folder.write_record({**(folder.record() or {}), **facts})


def _record_finished(
    task: Task, session: Session, watch: VideoWatch | None, seconds: Mapping[str, float]
) -> VideoFigures | None:
    """Record on rank 0 that the video is finished, with its figures, which are returned.

    watch: what was recorded while the video was decoded, if it was. seconds: the time of each phase.
    """
    job, folder, ranks = task.job, session.folder, session.ranks
    finished: dict[str, object] = {
        "ranks": ranks.size,
        "machine": session.machine,
        "seconds": seconds,
        "peak_memory": peak_memory(ranks.device).reserved,
        **record_of_files(folder, job.config, task.destination),
    }
    figures = None if watch is None else find_figures(job, folder.borders(), watch)
    if figures is not None:
        finished["figures"] = figures.as_record()
    folder.write_record({**(folder.record() or {}), **finished, "finished": True})
    folder.event("finished", video=str(task.destination.video))
    return figures
