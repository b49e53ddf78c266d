"""The whole way of the data, from a configuration to an MP4, read from top to bottom."""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vinfinity import __version__
from vinfinity.config import RunConfig, digest, leaves
from vinfinity.errors import InputError
from vinfinity.media.decode import decode_frames
from vinfinity.media.files import check_files, output_path, sheet_path
from vinfinity.media.mp4 import Mp4Writer
from vinfinity.media.sheet import ContactSheet
from vinfinity.models.unet import UNet
from vinfinity.parallel.context import Scopes, TemporalContext, temporal_context
from vinfinity.parallel.launch import check_ranks, launch
from vinfinity.parallel.ranks import Ranks, pick_device
from vinfinity.parallel.shards import FrameShards
from vinfinity.progress import Progress
from vinfinity.sampling.guidance import guide
from vinfinity.sampling.noise import frame_noise
from vinfinity.sampling.samplers import Sampler, State, denoise, make_sampler
from vinfinity.weights.card import ModelCard, read_card, weights_digest
from vinfinity.weights.files import read_header
from vinfinity.weights.load import load_scheduler, load_text_encoder, load_unet, load_vae
from vinfinity.weights.tokenizer import CLIPTokenizer, load_tokenizer

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Job:
    """A run that was checked against its model, before any weight is read.

    latent: (c, h, w) of one frame. size: (width, height) of the video in pixels. The settings below them are those of
    `config` that the user may leave to the model.
    """

    config: RunConfig
    card: ModelCard
    sampler: Sampler
    tokenizer: CLIPTokenizer
    latent: tuple[int, int, int]
    size: tuple[int, int]
    fps: int
    guidance: float
    trained_frames: int

    @property
    def texts(self) -> list[str]:
        """What the model is told: the negative prompt and the prompt, or the prompt alone without guidance."""
        config = self.config
        return [config.prompt] if self.guidance <= 1 else [config.negative or "", config.prompt]

    def concerns(self) -> list[str]:
        """What users should know before they wait: text that the model will not understand, or not see at all."""
        said = []
        for text in self.texts:
            if cut := self.tokenizer(text).cut:
                said.append(f"the text encoder takes {self.tokenizer.length} tokens; cut off: {cut!r}")
            if unknown := self.card.unknown_words(text):
                taught = "; ".join(
                    f"{group}: {', '.join(words)}" for group, words in self.card.vocabulary.items()
                )
                words = ", ".join(unknown)
                said.append(f"the model {self.card.name} was never taught: {words}. It knows {taught}")
        return said


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
    prepare(config)
    return launch(work, config, gpus=config.gpus, device=config.device, timeout=config.parallel.timeout)


def work(config: RunConfig, ranks: Ranks) -> Summary | None:
    """One rank's part of a run. Returns its summary on rank 0."""
    job = prepare(config)
    ranks.agree({"settings": digest(config), "weights": weights_digest(job.card), "version": version()})
    with Progress(enabled=ranks.first) as progress:
        for concern in job.concerns():
            progress.warn(concern)
        return generate(job, ranks, progress)


def prepare(config: RunConfig) -> Job:
    """Checks a configuration, completed from its model's card, against the model and the file system.

    Raises InputError (or WeightsError, one of its kinds) naming field, value and remedy.
    """
    check_files(config)
    check_ranks(gpus=config.gpus, device=config.device, frames=config.frames)
    card = read_card(config.model)
    # a configuration that was completed from the model's card has no gaps left
    assert config.pixels and config.steps and config.sampler and config.fps
    assert config.guidance is not None and config.attention.trained_frames is not None
    width, height = config.pixels
    latent = (card.latent_channels, -(-height // card.pixels), -(-width // card.pixels))
    scheduler = load_scheduler(card.folder / "scheduler")
    try:
        sampler = make_sampler(config.sampler, scheduler, steps=config.steps, eta=config.eta)
    except ValueError as error:
        raise InputError(
            "sampler", config.sampler, "choose other steps or another sampler", problem=f"{error}"
        ) from None
    tokenizer = load_tokenizer(card.folder / "tokenizer", length=card.text_length)
    if config.noise_from is not None:
        check_noise(Path(config.noise_from), (1, latent[0], config.frames, *latent[1:]))
    return Job(
        config=config,
        card=card,
        sampler=sampler,
        tokenizer=tokenizer,
        latent=latent,
        size=(width, height),
        fps=config.fps,
        guidance=config.guidance,
        trained_frames=config.attention.trained_frames,
    )


def generate(job: Job, ranks: Ranks, progress: Progress) -> Summary | None:
    """From prompt to MP4 on this rank, together with the others. Returns None on ranks other than 0."""
    started = time.monotonic()
    config, dtype = job.config, pick_dtype(job.config, ranks.device)
    shards = FrameShards(config.frames, ranks.size)
    held = shards.held(ranks.rank)
    with torch.inference_mode():
        text = encode_text(job, device=ranks.device, dtype=dtype)
        unet = load_unet(job.card.folder / "unet", device=ranks.device, dtype=dtype)
        predict = predictor(job, unet, text, contexts(job, shards, ranks), dtype=dtype)

        def noise(step: int) -> Tensor:
            return frame_noise(config.seed, held, job.latent, draw=step + 1).to(ranks.device)

        start = State(step=0, x=initial_noise(job, held).to(ranks.device))
        steps = denoise(job.sampler, predict, start, noise)
        for state in progress.track(steps, total=len(job.sampler.timesteps), label="denoising", unit="step"):
            x = state.x
        del unet, predict
        latents = ranks.gather(x, shards)
    if latents is None:
        return None
    if config.save_latents is not None:
        save_latents(latents, Path(config.save_latents).expanduser())
    write_video(job, latents, ranks.device, progress)
    peak = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else resident_peak()
    seconds = time.monotonic() - started
    return Summary(
        out=output_path(config),
        sheet=sheet_path(config),
        frames=config.frames,
        size=job.size,
        fps=job.fps,
        seconds=seconds,
        peak_memory=peak,
    )


def encode_text(job: Job, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The text states that guide the run: (2, t, c), without and with the prompt, or (1, t, c) without guidance."""
    tokens = [job.tokenizer(text) for text in job.texts]
    encoder = load_text_encoder(job.card.folder / "text_encoder", device=device, dtype=dtype)
    return encoder(torch.tensor([some.ids for some in tokens], device=device))


def contexts(job: Job, shards: FrameShards, ranks: Ranks) -> Callable[[int], TemporalContext]:
    """The temporal context in force at a training timestep: one for each phase of the schedule, made when first used.

    A video no longer than the model's trained clip takes plain attention, so that it is the base model's own.
    """
    attention = job.config.attention
    exchange = ranks.exchange(shards)
    made: dict[Scopes | None, TemporalContext] = {}

    def at(t: int) -> TemporalContext:
        scopes = None
        if shards.frames > job.trained_frames:
            phase = attention.phase(t)
            scopes = Scopes(
                local=attention.local,
                anchors=attention.anchors,
                local_bias=phase.local,
                anchor_bias=phase.anchors,
                entropy_scaling=attention.entropy_scaling,
            )
        if scopes not in made:
            made[scopes] = temporal_context(
                exchange,
                shards,
                ranks.rank,
                scopes,
                trained_frames=job.trained_frames,
                norm=attention.norm,
                device=ranks.device,
            )
        return made[scopes]

    return at


def predictor(
    job: Job, unet: UNet, text: Tensor, context: Callable[[int], TemporalContext], *, dtype: torch.dtype
) -> Callable[[Tensor, int], Tensor]:
    """The model's guided prediction for latents x (1, c, f, h, w) at a training timestep, in fp32."""

    def one(value: float) -> Tensor:
        return torch.full((1,), value, dtype=torch.float32, device=text.device)

    fps = one(job.config.fps_condition or job.fps) if unet.config.fps_cond else None

    def predict(x: Tensor, t: int) -> Tensor:
        branches = x.to(dtype).expand(text.shape[0], *x.shape[1:])
        return guide(unet(branches, one(t), text, context(t), fps=fps).float(), job.guidance)

    return predict


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


def write_video(job: Job, latents: Tensor, device: torch.device, progress: Progress) -> None:
    """Decodes the latents into the MP4 while it is written, and makes the contact sheet beside it."""
    config = job.config
    vae = load_vae(job.card.folder / "vae", device=device, dtype=torch.float32)
    width, height = job.size
    pictures = decode_frames(vae, latents, size=job.size, block=config.decode.frames or 8)
    sheet_at = sheet_path(config)
    sheet = None if sheet_at is None else ContactSheet(sheet_at, frames_total=config.frames)
    with Mp4Writer(
        output_path(config),
        width=width,
        height=height,
        fps=job.fps,
        config=config.video,
        metadata=provenance(config),
    ) as writer:
        for picture in progress.track(pictures, total=config.frames, label="decoding", unit="frame"):
            writer.write(picture)
            if sheet is not None:
                sheet.add(picture)
    if sheet is not None:
        sheet.save()


def provenance(config: RunConfig) -> dict[str, str]:
    """What made the video, for the MP4's metadata."""
    values = {key: value for key, value in leaves(config).items() if value is not None}
    made = {"version": version(), "digest": digest(config), "config": values}
    return {"title": config.prompt, "comment": json.dumps(made, ensure_ascii=False)}


def version() -> str:
    """The code that a run's numbers come from."""
    return f"vinfinity {__version__}, torch {torch.__version__}"


def check_noise(path: Path, shape: tuple[int, ...]) -> None:
    """Raises InputError where the file holds no tensor `noise` of that shape."""
    entry = read_header(path).get("noise")
    if entry is None:
        raise InputError("noise_from", path, "save it under the name noise", problem="holds no tensor noise")
    if entry.shape != shape:
        problem = f"holds noise of shape {entry.shape}"
        raise InputError(
            "noise_from", path, f"this run needs {shape}: change frames or size", problem=problem
        )


def pick_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """The type of the weights and of the UNet's arithmetic; "auto" is fp16 on a GPU and fp32 on the CPU."""
    return DTYPES[("fp16" if device.type == "cuda" else "fp32") if config.dtype == "auto" else config.dtype]


def resident_peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(config: RunConfig) -> list[tuple[str, str]]:
    """What a run would do, as rows for a table, without reading any weight. Raises InputError like `prepare`."""
    job = prepare(config)
    device = pick_device(config.device)
    channels, height, width = job.latent
    plain = config.frames <= job.trained_frames
    attention = (
        f"plain: no more than the {job.trained_frames} frames of training"
        if plain
        else f"dual-scope: {config.attention.local} frames on either side, {config.attention.anchors} anchors"
    )
    rows = [
        ("video", f"{config.frames} frames of {job.size[0]}x{job.size[1]} at {job.fps} fps"),
        ("latents", f"1x{channels}x{config.frames}x{height}x{width}"),
        ("model", f"{job.card.name} ({job.card.folder})"),
        ("device", f"{device}, {str(pick_dtype(config, device)).removeprefix('torch.')}"),
        ("sampler", f"{config.sampler}, {len(job.sampler.timesteps)} steps, guidance {job.guidance:g}"),
        ("attention", attention),
        ("seed", str(config.seed)),
        ("output", str(output_path(config))),
    ]
    return rows + [("warning", concern) for concern in job.concerns()]
