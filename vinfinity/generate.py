"""The whole way of the data, from a configuration to an MP4, read from top to bottom."""

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vinfinity.config import RunConfig, digest
from vinfinity.job import Job, pick_dtype, prepare, provenance, version
from vinfinity.media.decode import decode_frames
from vinfinity.media.files import output_path, sheet_path
from vinfinity.media.mp4 import Mp4Writer
from vinfinity.media.sheet import ContactSheet
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.fit import choose_execution, refuse_early
from vinfinity.predict import contexts, not_finite, predictor
from vinfinity.progress import Progress
from vinfinity.runs.record import write_record
from vinfinity.sampling.noise import frame_noise
from vinfinity.sampling.samplers import State, denoise
from vinfinity.weights.load import load_text_encoder, load_unet, load_vae


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

    Returns None on ranks other than 0. Raises a VinfinityError where the video cannot be made.
    """
    refuse_early(prepare(config))
    return launch(work, config, gpus=config.gpus, device=config.device, timeout=config.parallel.timeout)


def work(config: RunConfig, ranks: Ranks) -> Summary | None:
    """One rank's part of a run. Returns its summary on rank 0."""
    job = prepare(config)
    ranks.agree({"settings": digest(config), "weights": job.weights_digest, "version": version()})
    with Progress(enabled=ranks.first) as progress:
        for concern in job.concerns():
            progress.warn(concern)
        return generate(job, ranks, progress)


@torch.inference_mode()
def generate(job: Job, ranks: Ranks, progress: Progress) -> Summary | None:
    """From prompt to MP4 on this rank, together with the others. Returns None on ranks other than 0."""
    started = time.monotonic()
    config, dtype = job.config, pick_dtype(job.config, ranks.device)
    execution = choose_execution(job, ranks)
    shards = FrameShards(config.frames, ranks.size)
    held = shards.held(ranks.rank)
    exchange = ranks.exchange(shards)

    text = encode_text(job, device=ranks.device, dtype=dtype)
    if not text.isfinite().all():
        raise not_finite("text encoder", "its states", dtype)
    unet = load_unet(job.card.folder / "unet", device=ranks.device, dtype=dtype, loras=job.loras)
    predict = predictor(job, unet, text, shards, contexts(job, shards, ranks, exchange), ranks, dtype=dtype)

    def noise(step: int) -> Tensor:
        return frame_noise(config.seed, held, job.latent, draw=step + 1).to(ranks.device)

    state = State(step=0, x=initial_noise(job, held).to(ranks.device))
    steps = denoise(job.sampler, predict, state, noise)
    for done in progress.track(steps, total=len(job.sampler.timesteps), label="denoising", unit="step"):
        state = done
    del unet, predict
    denoised = time.monotonic()

    communication = ranks.collect(exchange.counters.per(len(job.sampler.timesteps)))
    latents = ranks.gather(state.x, shards)
    if latents is not None and config.save_latents is not None:
        save_latents(latents, Path(config.save_latents).expanduser())
    if ranks.first or config.decode.where == "ranks":
        write_video(job, latents, ranks, progress)
    if not ranks.first:
        return None

    peak = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else resident_peak()
    ended = time.monotonic()
    write_record(
        output_path(config),
        provenance(config)
        | {
            "ranks": ranks.size,
            "device": str(ranks.device),
            "seconds": {"denoising": denoised - started, "decoding": ended - denoised},
            "peak_memory": peak,
            "execution": asdict(execution),
            "communication_per_step": communication,
        },
    )
    return Summary(
        out=output_path(config),
        sheet=sheet_path(config),
        frames=config.frames,
        size=job.size,
        fps=job.fps,
        seconds=ended - started,
        peak_memory=peak,
    )


def encode_text(job: Job, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The text states that guide the run: (2, t, c), without and with the prompt, or (1, t, c) without guidance."""
    tokens = [job.tokenizer(text) for text in job.texts]
    encoder = load_text_encoder(job.card.folder / "text_encoder", device=device, dtype=dtype)
    return encoder(torch.tensor([some.ids for some in tokens], device=device))


def initial_noise(job: Job, held: range) -> Tensor:
    """The noise that this rank's frames start from: (1, c, f, h, w) fp32, from a file or from the seed."""
    if job.config.noise_from is not None:
        return load_file(job.config.noise_from)["noise"][:, :, held.start : held.stop].float()
    return frame_noise(job.config.seed, held, job.latent)


def save_latents(latents: Tensor, path: Path) -> None:
    """Writes the latents (1, c, F, h, w) as tensor `latents`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    save_file({"latents": latents.cpu().contiguous()}, unfinished)
    unfinished.replace(path)


def write_video(job: Job, latents: Tensor | None, ranks: Ranks, progress: Progress) -> None:
    """Decodes the latents into the MP4 while it is written, with a contact sheet beside it.

    latents: (1, c, F, h, w) on rank 0. The other ranks come here only to decode their share, and write nothing.
    """
    config = job.config
    vae = load_vae(job.card.folder / "vae", device=ranks.device, dtype=torch.float32)
    pictures = decode_frames(
        vae,
        latents,
        frames=config.frames,
        latent=job.latent,
        size=job.size,
        block=config.decode.frames or 8,
        ranks=ranks if config.decode.where == "ranks" else Ranks(device=ranks.device),
    )
    if latents is None:
        for _ in pictures:
            pass
        return
    width, height = job.size
    sheet_at = sheet_path(config)
    sheet = None if sheet_at is None else ContactSheet(sheet_at, frames_total=config.frames)
    writer = Mp4Writer(
        output_path(config),
        width=width,
        height=height,
        fps=job.fps,
        config=config.video,
        metadata={"title": config.prompt, "comment": json.dumps(provenance(config), ensure_ascii=False)},
    )
    with writer:
        for picture in progress.track(pictures, total=config.frames, label="decoding", unit="frame"):
            writer.write(picture)
            if sheet is not None:
                sheet.add(picture)
    if sheet is not None:
        sheet.save()


def resident_peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
