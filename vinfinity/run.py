"""A run from top to bottom: check, launch ranks, denoise, decode, record."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial

from vinfinity.config import RunConfig
from vinfinity.decoding import decode_to_files
from vinfinity.denoise.execution import Execution
from vinfinity.denoise.loop import denoise
from vinfinity.denoise.selection import StepNoise
from vinfinity.denoiser import fitting_denoiser
from vinfinity.encoding import encode_input
from vinfinity.figures import borders_in_frames, find_figures
from vinfinity.inputs import initial_state, shared_text, steered
from vinfinity.job import Job
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
    """Generate the video that `config` describes, on as many ranks as it asks for or a launcher started.

    destination: the files to write, if the caller has called `settle_start` for them already. replaces: see
    `settle_start`. shutdown: requests to end this process, on which the run ends with a checkpoint; None if the caller
    handles none.
    Returns None on ranks other than 0, and if the run is done already. Raises VinfinityError.
    """
    if destination is None:
        destination = Destination.of(config)
        config, begins = settle_start(config, destination, replaces=replaces)
        if begins == "done":
            check_done(config, destination)
            return None
    return launch_run(make_task(config, destination, replaces=replaces), shutdown=shutdown)


def make_task(
    config: RunConfig, destination: Destination, *, like: Task | None = None, replaces: bool = True
) -> Task:
    """The task of a run, checked once for all its ranks, when `settle_start` has been called for it.

    With `overwrite`, a run of other weights or noise is replaced as one of other settings is, as a whole if its first
    pass is of others. like: see `Task.of`. replaces: see `settle_start`. Raises InputError.
    """
    task = Task.of(config, destination, like=like)
    try:
        if config.resume:
            check_same(destination.folder, weights=task.job.weights_digest, noise=task.job.noise_digest)
            if task.first is not None:
                with naming_first_pass():
                    job, folder = task.first.job, task.first.destination.folder
                    check_same(folder, weights=job.weights_digest, noise=job.noise_digest)
    except OtherRunError:
        if not (config.overwrite and replaces):
            raise
        return Task.of(replace(config, resume=False), destination, like=task)
    return task


def launch_run(task: Task, *, shutdown: Shutdown | None = None) -> Summary | None:
    """Carry out a task on all its ranks. Returns None on ranks other than 0. Raises VinfinityError."""
    config = task.job.config
    for one in (task, task.first):
        if one is not None and one.job.denoise:
            refuse_early(one.job)
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
    """One rank's part of a run of one video. Returns the summary on rank 0."""
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
    """One rank's part of a video, the same code for one rank and for many. Returns the summary on rank 0.

    networks: those that are loaded already. overall: shows the progress, if this is one of several videos. within: of
    the run whose first pass this is. Returns None on other ranks, and if the video is finished already.
    """
    job, started = task.job, time.monotonic()
    share = (0.0 if task.first is None else task.first.work / task.work, 1.0)
    forget_peak_memory(ranks.device)
    with Session.open(job, task.destination, ranks, overall=overall, share=share, within=within) as session:
        if session.start == "done":
            session.progress.note(f"{task.destination.video} is finished; nothing to do")
            return None
        session.announce(job)
        if task.first is not None:
            make_video(task.first, ranks, networks, within=session)
        watch = None
        with previews(job, session) as shown:
            if job.denoise:
                latents = denoise_video(job, session, networks, shown)
            else:
                latents = session.checkpoints.final()
                # how much of it may be kept is planned by the next video that is denoised
                networks.keep(job, ample=False)
            denoised = time.monotonic()
            session.enter("while decoding")
            if task.decode:
                unfinished = session.folder.decoded
                watch = decode_to_files(
                    task, latents, networks, ranks, session.progress, unfinished=unfinished
                )
        if not ranks.first:
            return None
        seconds = {"denoising": denoised - started, "decoding": time.monotonic() - denoised}
        finished: dict[str, object] = {
            "ranks": ranks.size,
            "machine": session.machine,
            "seconds": seconds,
            "peak_memory": peak_memory(ranks.device).reserved,
            **record_of_files(session.folder, job.config, task.destination),
        }
        found = None if watch is None else find_figures(job, session.folder.borders(), watch)
        if found is not None:
            finished["figures"] = found.as_record()
        record = session.folder.record() or {}
        session.folder.write_record({**record, **finished, "finished": True})
        session.folder.event("finished", video=str(task.destination.video))
        return task.summary(ranks, seconds=time.monotonic() - started, figures=found)


def denoise_video(job: Job, session: Session, networks: Networks, shown: Previews | None) -> Parts:
    """From the prompt, or the last checkpoint, to the final latents on disk, and figures of it in the record.

    Raises Stopped, with a checkpoint written, if the run was asked to end.
    """
    ranks, team, checkpoints = session.ranks, session.team, session.checkpoints
    fit = find_fit(job, ranks, loaded=networks.bytes, keep=networks.several)
    networks.keep(job, ample=fit.keeps)
    execution = fit.first
    own, steps = job.selection.of(team.held), len(job.sampler.timesteps)
    restored = checkpoints.restore()
    video, pictures = encode_input(job, session, networks, restored)
    state = restored or initial_state(job, own, video)
    session.enter(f"after step {state.step} of {steps}" if state.step else "before anything was computed")
    remaining = steps - state.step
    if remaining:
        device, text = ranks.device, shared_text(job, networks, ranks)
        network = networks.denoiser(job)
        denoiser, execution = fitting_denoiser(
            job, network, text, team, session.exchange, ranks, fit=fit, t=job.sampler.timesteps[state.step]
        )
        sampler = steered(job, own, device=device, pictures=pictures)
        noise = StepNoise(job.selection, own, job.latent, device, steps=steps)
        # some ranks take longer to load their weights
        ranks.gather()
        ranks.check_shutdown()
    with ranks.shutdown.reacting(Reaction.WAIT):
        if remaining:
            state = state.to(device)
            watch = None if shown is None else partial(shown.watch, sampler)
            loop = denoise(
                denoiser, sampler, state, noise=noise, ranks=ranks, vote=checkpoints.vote, watch=watch
            )
            for state, votes in session.progress.track(loop, total=remaining, label="denoising"):
                session.after_step(state, votes, steps=steps)
            if shown is not None:
                shown.flush()
        figures = _figures(job, execution, session, remaining)
        if ranks.first:
            # before the latents: a run that has them does not know its ranks and edits any more
            session.folder.write_record({**(session.folder.record() or {}), **figures})
        return checkpoints.finish(state)


def _figures(job: Job, execution: Execution, session: Session, steps: int) -> Mapping[str, object]:
    """How the denoising steps were carried out: borders, what each rank sent per step, and the memory that it took."""
    ranks = session.ranks
    sent = ranks.collect(session.exchange.counters.per(steps)) if steps else []
    memory = ranks.collect(asdict(peak_memory(ranks.device)))
    return {
        "borders": borders_in_frames(job, session.team.shards),
        "execution": asdict(execution),
        "communication_per_step": sent,
        "memory": memory,
    }
