"""The whole way of the data, from a configuration to an MP4, read from top to bottom."""

import json
import resource
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vinfinity.config import RunConfig, digest
from vinfinity.denoise.execution import Execution
from vinfinity.denoise.noise import INITIAL, frame_noise
from vinfinity.denoise.samplers import State, denoise
from vinfinity.errors import BusyError, InputError, OutputError, RankError, VinfinityError
from vinfinity.job import Job, pick_dtype, prepare, provenance, version
from vinfinity.media.video import write_video
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.teams import Team
from vinfinity.planning.fit import choose_execution, refuse_early
from vinfinity.predict import not_finite, predictor
from vinfinity.runs.checkpoints import Checkpoints
from vinfinity.runs.edit import keeping, kept_latents, kept_pieces
from vinfinity.runs.folder import RunFolder, run_folder
from vinfinity.runs.opening import held, opened
from vinfinity.runs.parts import Parts, save_whole
from vinfinity.runs.paths import output_path, sheet_path
from vinfinity.runs.start import how_to_start
from vinfinity.system.progress import Progress, add_line
from vinfinity.system.signals import Stops
from vinfinity.weights.load import load_decoder, load_text_encoder, load_unet


@dataclass(frozen=True)
class Summary:
    """What a run made. seconds: wall time. peak_memory: bytes, of the device where it is a GPU, of the process else."""

    out: Path
    sheet: Path | None
    frames: int
    size: tuple[int, int]
    fps: int
    seconds: float
    peak_memory: int


def run(config: RunConfig, origins: Mapping[str, str]) -> Summary | None:
    """Generates the video that `config` describes, on as many ranks as it asks for or a launcher started.

    Returns None on ranks other than 0, and where the run to go on with is done already. Raises a VinfinityError where
    the video cannot be made.
    """
    refuse_early(prepare(config))
    how_to_start(config)
    folder = run_folder(output_path(config))
    try:
        return launch(work, config, gpus=config.gpus, device=config.device, timeout=config.parallel.timeout)
    except VinfinityError as error:
        # by its code: what a started rank raised arrives as a VinfinityError that has the code of its kind
        if error.exit_code in (InputError.exit_code, BusyError.exit_code):  # those leave the folder as it was
            raise
        if error.exit_code in (RankError.exit_code, OutputError.exit_code) and folder.holds_work():
            error.message += f"; `vinfinity resume {folder.path}` goes on from what was kept"
        folder.event("ended", message=error.message, exit_code=error.exit_code)
        add_line(folder.log, error.message)
        raise


def work(config: RunConfig, ranks: Ranks) -> Summary | None:
    """One rank's part of a run. Returns its summary on rank 0."""
    job = prepare(config)
    facts = {
        "settings": digest(config),
        "weights": job.weights_digest,
        "decoder": job.decoder_digest,
        "version": version(),
    }
    record = provenance(config) | {
        "weights": job.weights_digest,
        "decoder": job.decoder_digest,
        "command": shlex.join(sys.argv),
        "ranks": ranks.size,
        "device": str(ranks.device),
    }
    with (
        Stops().heeded() as stops,
        opened(config, ranks, facts=facts, record=record) as (folder, start),
        Progress(enabled=ranks.first, log=folder.log) as progress,
    ):
        if start == "done":
            progress.note(f"{output_path(config)} is finished; nothing is left to do")
            return None
        for concern in job.concerns():
            progress.warn(concern)
        made, computed = len(job.footage.made), len(job.footage.frames)
        if computed > made:
            progress.note(
                f"{made} of {config.frames} frames are made, to fit to {computed - made} of those that stay"
            )
        team = ranks.team(len(job.footage.frames), split=job.splits_branches)
        saved = Checkpoints(
            folder,
            ranks=ranks,
            footage=job.footage,
            held=team.held,
            writes=team.writes,
            kept=partial(kept_pieces, config),
            steps=len(job.sampler.timesteps),
            settings=folder.identity(),
            config=config.checkpoint,
            stops=stops,
            progress=progress,
            # between two runs of the whole UNet, the features that are reused are part of the state
            aligned=lambda step: step % config.reuse.interval == 0,
        )
        return generate(job, ranks, team, progress, saved)


@torch.inference_mode()
def generate(job: Job, ranks: Ranks, team: Team, progress: Progress, saved: Checkpoints) -> Summary | None:
    """From prompt, or from what was kept, to MP4 on this rank, together with the others. None on ranks other than 0."""
    started = time.monotonic()
    config, steps = job.config, len(job.sampler.timesteps)
    execution, exchange = choose_execution(job, ranks), team.exchange()

    state = saved.restore() or State(step=0, x=initial_noise(job, job.footage.of(saved.held)))
    left = steps - state.step
    if left:
        state = denoised(job, state.to(ranks.device), ranks, team, exchange, execution, progress, saved)
    communication = ranks.collect(exchange.counters.per(left)) if left else []
    latents = saved.finish(state)
    ended_denoising = time.monotonic()

    if ranks.first and config.save_latents is not None:
        save_whole(latents, Path(config.save_latents).expanduser(), source="x", name="latents")
    decode(job, latents, saved.folder, ranks, progress)
    if not ranks.first:
        return None
    ended = time.monotonic()
    figures = {
        "ranks": ranks.size,
        "seconds": {"denoising": ended_denoising - started, "decoding": ended - ended_denoising},
        "peak_memory": peak_memory(ranks.device),
        "execution": asdict(execution),
        "communication_per_step": communication,
    }
    saved.folder.write_record((saved.folder.record() or {}) | figures | {"finished": True})
    saved.folder.event("finished", video=str(output_path(config)))
    return summary(job, ranks, seconds=ended - started)


def denoised(
    job: Job,
    state: State,
    ranks: Ranks,
    team: Team,
    exchange: FrameExchange,
    execution: Execution,
    progress: Progress,
    saved: Checkpoints,
) -> State:
    """The state after the last step. Raises Stopped where a signal asked for it, with a checkpoint written."""
    dtype, device = pick_dtype(job.config, ranks.device), ranks.device
    text = encode_text(job, device=device, dtype=dtype)
    if not text.isfinite().all():
        raise not_finite("text encoder", "its states", dtype)
    unet = load_unet(job.card.folder / "unet", device=device, dtype=dtype, loras=job.loras)
    predict = predictor(job, unet, text, team, exchange, saved.pulse, execution=execution, dtype=dtype)

    sampler, own = job.sampler, job.footage.of(saved.held)
    if job.config.edit.run is not None:
        sampler = keeping(job.config, sampler, own, job.latent, device=device)

    def noise(step: int) -> Tensor:
        return job_noise(job, own, draw=step + 1).to(device)

    with saved.stops.noted():
        states = denoise(sampler, predict, state, noise)
        left = len(sampler.timesteps) - state.step
        for state in progress.track(states, total=left, label="denoising", unit="step"):
            saved.keep(state)
    return state


def decode_again(config: RunConfig, folder: RunFolder) -> Summary | None:
    """Decodes the latents that a run has kept into the file that `config` names, on one rank or several.

    Returns None on ranks other than 0. Raises InputError where the run has no latents yet.
    """
    prepare(config)
    kept_latents(folder)
    return launch(
        decode_work, (config, folder), gpus=config.gpus, device=config.device, timeout=config.parallel.timeout
    )


def decode_work(task: tuple[RunConfig, RunFolder], ranks: Ranks) -> Summary | None:
    """One rank's part of decoding again."""
    (config, folder), started = task, time.monotonic()
    job = prepare(config)
    with (
        Stops().heeded() as stops,
        held(folder, ranks, facts={"decoder": job.decoder_digest, "version": version()}),
        Progress(enabled=ranks.first, log=folder.log) as progress,
    ):
        stops.kept = "stopped while decoding; the run and its latents stay as they were"
        latents = kept_latents(folder)
        latents.verify()
        decode(job, latents, folder, ranks, progress)
        if not ranks.first:
            return None
        folder.event("decoded", video=str(output_path(config)))
        return summary(job, ranks, seconds=time.monotonic() - started)


def decode(job: Job, latents: Parts, folder: RunFolder, ranks: Ranks, progress: Progress) -> None:
    """From latents to MP4 and contact sheet. Ranks other than 0 decode their share, or nothing."""
    config = job.config
    if not ranks.first and config.decode.where == "rank0":
        return
    made_by = provenance(config) | {"weights": job.weights_digest, "decoder": job.decoder_digest}
    write_video(
        load_decoder(job.decoder, device=ranks.device, dtype=torch.float32),
        latents if ranks.first else None,
        video=output_path(config),
        sheet=sheet_path(config),
        frames=config.frames,
        codec=config.video,
        decode=config.decode,
        latent=job.latent,
        size=job.size,
        fps=job.fps,
        metadata={"title": config.prompt, "comment": json.dumps(made_by, ensure_ascii=False)},
        unfinished=folder.decoded,
        identity=f"{latents.digest()} {job.decoder_digest}",
        ranks=ranks,
        progress=progress,
    )


def encode_text(job: Job, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The text states that guide the run: (2, t, c), without and with the prompt, or (1, t, c) without guidance."""
    tokens = [job.tokenizer(text) for text in job.texts]
    encoder = load_text_encoder(job.card.folder / "text_encoder", device=device, dtype=dtype)
    return encoder(torch.tensor([some.ids for some in tokens], device=device))


def initial_noise(job: Job, frames: Sequence[int]) -> Tensor:
    """The noise that some frames start from: (1, c, f, h, w) fp32, from a file or from their seeds."""
    if job.config.noise_from is not None:
        return load_file(job.config.noise_from)["noise"][:, :, frames[0] : frames[-1] + 1].float()
    return job_noise(job, frames)


def job_noise(job: Job, frames: Sequence[int], *, draw: int = INITIAL) -> Tensor:
    """A draw of noise for some frames, each by its own seed."""
    return frame_noise([job.footage.seeds[frame] for frame in frames], frames, job.latent, draw=draw)


def summary(job: Job, ranks: Ranks, *, seconds: float) -> Summary:
    """What was made, for the user."""
    return Summary(
        out=output_path(job.config),
        sheet=sheet_path(job.config),
        frames=job.config.frames,
        size=job.size,
        fps=job.fps,
        seconds=seconds,
        peak_memory=peak_memory(ranks.device),
    )


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held, in bytes: of the device where it is a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
