"""The steps from a prompt to frames, and `Pipeline`, which keeps a model's networks loaded between videos."""

import base64
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vinfinity.config import Prompt, RunConfig, VideoConfig, VideoFormat, choose_format
from vinfinity.config.formats import check_rate, check_sound
from vinfinity.denoise.execution import Execution
from vinfinity.denoise.kept_frames import KeptFrames
from vinfinity.denoise.loop import Denoiser, denoise, not_finite
from vinfinity.denoise.scopes import ScheduledContexts
from vinfinity.denoise.selection import StepNoise
from vinfinity.denoise.start import noised
from vinfinity.denoise.state import Sampler, State
from vinfinity.errors import InputError, OutOfMemoryError, did_you_mean
from vinfinity.job import Job, prepare
from vinfinity.media.audio import check_audio
from vinfinity.media.blocks import plan_blocks
from vinfinity.media.decode import decode_frames
from vinfinity.media.encode import encode_frames
from vinfinity.media.encoders import check_encoders
from vinfinity.media.finish import PICTURES
from vinfinity.media.latents import LatentSource, TensorLatents, pick_latents
from vinfinity.media.writer import VideoWriter
from vinfinity.models.family import TEXT_ENCODER
from vinfinity.models.frame_text import FrameText
from vinfinity.models.network_call import CallOptions
from vinfinity.models.offload import store_for
from vinfinity.networks import Networks, load_part
from vinfinity.parallel.devices import fallen_back, pick_device
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.teams import BranchSwap, Team
from vinfinity.planning.fit import Fit, find_fit
from vinfinity.resolve import load_config
from vinfinity.runs.sources import Sources, check_sources, open_input, open_pictures
from vinfinity.system.folders import expanded, temporary_folder
from vinfinity.system.out_of_memory import describe, is_out_of_memory, named_out_of_memory
from vinfinity.system.output import check_output, check_output_folder
from vinfinity.system.precision import fp32_products
from vinfinity.system.progress import note, warn

# a text, or prompts over time
Prompts = str | Sequence[str | Mapping[str, object] | Prompt]

# settings that `Pipeline` fixes when it loads a model, and those that only runs with files or ranks have
LOADED = ("model", "device", "dtype", "lora", "decoder", "compile")
OF_RUNS = (
    "gpus",
    "out",
    "overwrite",
    "resume",
    "save_latents",
    "preview",
    "audio",
    "checkpoint",
    "edit",
    "parallel",
    "video",
)


# settings of `video` that Video.save takes
SAVED = ("codec", "crf", "preset", "pixel_format", "quality", "repeat", "bit_depth")


# ---- from prompt to latents, on one rank or many ----


def encode_text(
    job: Job, *, device: torch.device, dtype: torch.dtype, encoder: nn.Module | None = None
) -> FrameText:
    """The text of each frame that the job computes. encoder: loaded, used and freed if None.

    Raises NotFiniteError if its states are NaN or infinite.
    """
    if encoder is None:
        encoder = load_part(job, TEXT_ENCODER, device=device, dtype=dtype)
    return frame_text(job, text_states(job, encoder, device=device, dtype=dtype))


def shared_text(job: Job, networks: Networks, ranks: Ranks) -> FrameText:
    """The same on every rank, encoded by rank 0 alone: text encoders may be larger than what they guide.

    Raises NotFiniteError on rank 0 if the states are NaN or infinite, RankError on ranks that do not get them.
    """
    device, dtype = ranks.device, job.dtype(ranks.device)
    states = None
    if ranks.first:
        states = text_states(job, networks.text_encoder(job), device=device, dtype=dtype)
    shape = (len(job.texts), job.tokenizer.length, job.card.traits.denoiser.text_width)
    return frame_text(job, ranks.share(states, shape=shape, dtype=dtype, label="text states"))


def frame_text(job: Job, states: Tensor) -> FrameText:
    """The text of each frame that the job computes. states: (n, t, c), of all texts."""
    return job.prompts.text_of(states, job.selection.frames, guided=job.guided)


@torch.no_grad()
def text_states(job: Job, encoder: nn.Module, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The states of all texts of a job: (n, t, c). Raises NotFiniteError if they are NaN or infinite."""
    tokens = [job.tokenizer(text) for text in job.texts]
    ids = torch.tensor([prompt.ids for prompt in tokens], device=device)
    with fp32_products(tf32=False):
        states: Tensor = job.card.family.encode_text(encoder, ids, [prompt.used for prompt in tokens])
    if not states.isfinite().all():
        raise not_finite("text encoder", "its output", dtype)
    return states


def initial_state(job: Job, frames: Sequence[int], video: LatentSource | None = None) -> State:
    """The state before the first step: noise (1, c, f, h, w) fp32 for these frames, from a file or from their seeds,
    added to the latents of the video to start from, if there is one.
    """
    if job.config.noise_from is None:
        noise = job.selection.noise(frames, job.latent)
    else:
        whole = load_file(expanded(job.config.noise_from, field="noise_from"))["noise"]
        noise = whole[:, :, frames[0] : frames[-1] + 1].float()
    if video is None:
        return State(step=0, x=noise)
    return noised(job.sampler, pick_latents(video, frames), noise)


def steered(
    job: Job,
    frames: Sequence[int],
    *,
    device: torch.device,
    pictures: LatentSource | None = None,
) -> Sampler:
    """The job's sampler, which holds kept frames to the latents of the earlier run, and others to those of pictures.

    frames: of this rank. pictures: the latents of the pictures in order. Raises DamagedError.
    """
    sampler = job.sampler
    if job.earlier is not None:
        sampler = job.earlier.sampler(sampler, frames, job.latent, device=device)
    if pictures is None:
        return sampler
    clean = torch.zeros(1, job.latent[0], len(frames), *job.latent[1:])
    until = torch.zeros(len(frames), dtype=torch.int64)
    for frame, number in job.held.items():
        if frame in frames:
            at = list(frames).index(frame)
            clean[:, :, at] = pick_latents(pictures, [number])[:, :, 0]
            until[at] = len(sampler.timesteps)
    return KeptFrames(sampler, clean.to(device), until.to(device))


def make_denoiser(
    job: Job,
    network: nn.Module,
    text: FrameText,
    team: Team,
    exchange: FrameExchange,
    execution: Execution,
) -> Denoiser:
    """The guided prediction of `network` for this rank's frames. text: of all guidance branches."""
    config, device = job.config, text.states.device
    swap = None
    if team.branch is not None:
        text, swap = text.branch(team.branch), BranchSwap(team, exchange.counters)
    contexts = ScheduledContexts(
        config.attention,
        job.selection,
        job.prompts.scenes,
        loop=config.loop,
        timesteps=job.sampler.timesteps,
        team=team,
        exchange=exchange,
        chunk_bytes=execution.chunk_bytes,
        device=device,
        joint=job.card.traits.denoiser.joint,
    )
    options = CallOptions(
        branches_at_once=execution.branches,
        store=store_for(execution.skips, device),
        fps=float(config.fps_condition or config.fps),
        guidance=config.guidance,
        reuse_depth=config.reuse.depth if config.reuse.interval > 1 else None,
    )
    call = job.card.family.network_call(network, text, contexts, options)
    return Denoiser(call, config.guidance, swap, config.reuse.interval)


def fitting_denoiser(
    job: Job,
    network: nn.Module,
    text: FrameText,
    team: Team,
    exchange: FrameExchange,
    ranks: Ranks,
    *,
    fit: Fit,
    t: float,
    rehearsed: bool | None = None,
) -> tuple[Denoiser, Execution]:
    """The denoiser with the first execution of `fit` in which it runs, and that execution.

    t: the training timestep of the next step. rehearsed: whether to try executions before ranks need each other; by
    default on GPUs whose memory is scarce, and to compile. Raises OutOfMemoryError, on every rank, if none fits.
    """
    execution = fit.first
    if rehearsed is None:
        rehearsed = job.config.compile or (ranks.device.type != "cpu" and not fit.ample)
    if rehearsed:
        silent = team.rehearsal_exchange()
        c, h, w = job.latent
        x = torch.zeros(1, c, len(team.held), h, w, device=ranks.device)

        def rehearsal(execution: Execution) -> None:
            denoiser = make_denoiser(job, network, text, team, silent, execution)
            ranks.read(denoiser.call(x, t).isfinite().all())

        execution = rehearse(fit.executions, rehearsal, ranks)
    return make_denoiser(job, network, text, team, exchange, execution), execution


@torch.no_grad()
def rehearse(
    executions: Sequence[Execution], rehearsal: Callable[[Execution], object], ranks: Ranks
) -> Execution:
    """The first of the executions, from the fastest to the leanest, in which all ranks have enough memory.

    Plans know tensors, but not other programs on a GPU or the workspaces of its libraries. In a rehearsal no rank waits
    for another one, so a lack of memory leaves nobody waiting; and what runs once (setting up libraries, compiling) is
    done before ranks wait for each other. rehearsal: a step that sends nothing. Raises OutOfMemoryError, on every rank,
    if none fits.
    """
    problems: list[str] = []
    for execution in executions:
        problem = _lack_of_memory(partial(rehearsal, execution), ranks)
        ranks.gather()
        problems = [found for found in ranks.collect(problem) if found is not None]
        if not problems:
            return execution
        if ranks.first:
            note(f"{problems[0].partition(';')[0]}; trying with less")
    raise OutOfMemoryError(problems[0])


def _lack_of_memory(work: Callable[[], object], ranks: Ranks) -> str | None:
    """What `work` says if memory does not suffice for it; None if it does."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = describe(error, where=str(ranks))
    else:
        return None
    # tensors of the step are held by the error until here
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    return problem


# ---- as a library, in this process ----


@dataclass(frozen=True, repr=False)
class Video:
    """A generated video. It shows itself in a notebook.

    frames: (F, height, width, 3) uint8. latents: (1, c, f, h, w) fp32 on the CPU, before decoding; f latent frames.
    fps: playback speed. metadata: tags of the MP4.
    """

    frames: np.ndarray
    latents: Tensor
    fps: Fraction | int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames.shape[2], self.frames.shape[1]

    def save(
        self, path: str | Path, *, overwrite: bool = False, audio: str | Path | None = None, **settings: Any
    ) -> Path:
        """Write the video and return its path. The ending chooses the format: .mp4, .mov, .webm, .gif, .webp, or / for
        a folder of PNG.

        audio: a file whose sound accompanies it. settings: those of `video`, such as crf=28 or codec="h265". Frames
        have 8 bits: `generate_file` writes more. Raises InputError if the video exists and `overwrite` is false or if
        the settings do not suit the format, OutputError if it cannot be written.
        """
        video = self._format(str(path), settings)
        sound = None if audio is None else expanded(audio, field="audio")
        check_rate(video, self.fps)
        check_encoders(video, field="path")
        if sound is not None:
            check_sound(video, str(sound))
            check_audio(sound)
        path = expanded(path, field="path")
        if video.container.is_folder:
            check_output_folder("path", path, overwrite=overwrite, own=PICTURES, way="pass overwrite=True")
        else:
            check_output("path", path, overwrite=overwrite, way="pass overwrite=True")
        width, height = self.size
        with VideoWriter(
            path, video, width=width, height=height, fps=self.fps, metadata=self.metadata, audio=sound
        ) as writer:
            for frame in self.frames:
                writer.write(frame if video.sample_bits == 8 else frame.astype(np.uint16) * 257)
        return path

    def _format(self, path: str, settings: Mapping[str, Any]) -> VideoFormat:
        """Raises InputError for settings that are unknown or do not suit the format."""
        for name in settings:
            if name not in SAVED:
                remedy = did_you_mean(name, SAVED) or f"known are {', '.join(SAVED)}"
                raise InputError(name, settings[name], remedy, problem="is an unknown setting")
        video = choose_format(path, VideoConfig(**settings), field="path")
        if video.bits > 8 and settings.get("bit_depth") is not None:
            problem = "is more than the 8 bits of the frames"
            raise InputError("bit_depth", video.bits, "use vinfinity.generate_file", problem=problem)
        return video

    def __repr__(self) -> str:
        width, height = self.size
        return f"Video({len(self.frames)} frames of {width}x{height} at {self.fps} fps)"

    def _repr_html_(self) -> str:
        with temporary_folder() as folder:
            data = self.save(folder / "video.mp4").read_bytes()
        source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        return f'<video controls loop width="{self.size[0]}" src="{source}"></video>'


def as_settings(prompt: Prompts) -> dict[str, object]:
    """The settings `prompt` and `prompts` of a text, or of a list of prompts over time, where a text begins at 0."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"prompts": [{"text": entry} if isinstance(entry, str) else entry for entry in prompt]}


class Pipeline:
    """A model loaded on one device, ready to generate any number of videos.

        pipe = vinfinity.Pipeline.from_pretrained("mini")
        video = pipe("a blue boat moving right", frames=64, seed=7)

    It holds no locks and takes over no signals: use it from a thread, in a notebook, or under a running event loop.
    Nothing is written to disk. For several GPUs or resumable runs, see `vinfinity.generate(gpus=...)` and
    `vinfinity.generate_file`.
    """

    def __init__(self, config: RunConfig) -> None:
        self._job = prepare(config)
        self._ranks = Ranks(device=pick_device(config.device))
        if fallback := fallen_back(config.device):
            warn(fallback)
        self._dtype = self._job.dtype(self._ranks.device)
        self._networks = Networks(self._ranks.device, several=True)
        with named_out_of_memory(str(self._ranks)):
            self._networks.text_encoder(self._job)
            self._networks.denoiser(self._job)
            self._networks.decoder(self._job)

    @classmethod
    def from_pretrained(cls, model: str | Path = "mini", **settings: Any) -> "Pipeline":
        """Load a model: `mini`, the name of a fetched model, or a folder in diffusers layout.

        settings: device, dtype, lora, decoder and compile, as in the command line's options. Raises InputError.
        """
        for name in settings:
            if name not in LOADED:
                remedy = f"pass it when you call the pipeline; from_pretrained takes {', '.join(LOADED)}"
                raise InputError(name, settings[name], remedy, problem="is a setting of a video")
        return cls(load_config(model=model, **settings))

    @property
    def device(self) -> torch.device:
        """The device that the networks are on."""
        return self._ranks.device

    def __call__(self, prompt: Prompts, **settings: Any) -> Video:
        """Generate a video. prompt: a text, or a list of prompts over time, such as
        `["a red ball", {"at": "50%", "text": "a blue boat"}]`.

        settings: any setting of a video, such as frames, seed, steps or `attention={"local": 4}`.

        Raises InputError for unusable settings, NotFiniteError for NaN or infinite values, OutOfMemoryError.
        """
        job = self._prepared(prompt, settings)
        [final] = deque(self._denoise(job), maxlen=1)
        return self.decode_job(job, final.x)

    def denoise(self, prompt: Prompts, **settings: Any) -> Iterator[State]:
        """Yield the state after each denoising step: `state.step`, and `state.x`, latents (1, c, f, h, w) fp32.

        Settings are checked at once, before the first state is requested. Raises as calling the pipeline does.
        """
        return self._denoise(self._prepared(prompt, settings))

    def decode(self, latents: State | Tensor, **settings: Any) -> Video:
        """Decode latents (1, c, f, h, w), or those of a state, into a video.

        settings: size, fps and `decode`. Raises InputError, or NotFiniteError if frames are NaN or infinite.
        """
        x = latents.x if isinstance(latents, State) else latents
        geometry = self._job.card.geometry
        height, width = (geometry.downscale * side for side in x.shape[3:])
        given = {"size": f"{width}x{height}", **settings, "frames": geometry.frames(x.shape[2])}
        return self.decode_job(self._prepared("", given), x)

    def _prepared(self, prompt: Prompts, settings: Mapping[str, Any]) -> Job:
        loaded = self._job.config
        for name in LOADED:
            if name in settings:
                remedy = "load another pipeline with Pipeline.from_pretrained"
                raise InputError(name, settings[name], remedy, problem="was fixed when the model was loaded")
        for name in settings:
            if name.partition(".")[0] in OF_RUNS:
                remedy = "use vinfinity.generate_file, or Video.save"
                raise InputError(name, settings[name], remedy, problem="belongs to runs that write files")
        fixed = {name: getattr(loaded, name) for name in LOADED}
        config = load_config(**as_settings(prompt), **fixed, **settings)
        if config.two_passes or config.input.keep_audio:
            key, value = (
                ("input.keep_audio", True)
                if config.input.keep_audio
                else ("first_pass.size", config.first_pass.size)
            )
            raise InputError(
                key, value, "use vinfinity.generate_file", problem="belongs to runs that write files"
            )
        check_sources(config)
        return prepare(config)

    def _denoise(self, job: Job) -> Iterator[State]:
        frames = job.selection.frames
        team = self._ranks.team(len(frames), split=False, grouped=job.grouped(self.device))
        with named_out_of_memory(str(self._ranks)):
            encoder, network = self._networks.text_encoder(job), self._networks.denoiser(job)
            text = encode_text(job, device=self.device, dtype=self._dtype, encoder=encoder)
            fit = find_fit(job, self._ranks, loaded=self._networks.bytes)
            t = job.sampler.timesteps[0]
            denoiser, _ = fitting_denoiser(
                job, network, text, team, team.exchange(), self._ranks, fit=fit, t=t
            )
            video, pictures = self._encode(job)
            state = initial_state(job, frames, video).to(self.device)
            sampler = steered(job, frames, device=self.device, pictures=pictures)
            steps = len(sampler.timesteps)
            noise = StepNoise(job.selection, frames, job.latent, self.device, steps=steps)
            for after, _ in denoise(denoiser, sampler, state, noise=noise, ranks=self._ranks):
                yield after

    def _encode(self, job: Job) -> tuple[LatentSource | None, LatentSource | None]:
        """The latents of the video and of the pictures that a job starts from."""
        config = job.config
        opened = (
            open_input(config) if config.input.video is not None else None,
            open_pictures(config) if config.input.pictures else None,
        )
        if not any(opened):
            return None, None
        encoder = self._networks.encoder(job)

        def latents(sources: Sources | None) -> TensorLatents | None:
            if sources is None:
                return None
            for concern in sources.concerns():
                warn(concern)
            frames = range(sources.frames)
            blocks = encode_frames(
                encoder,
                sources.read(frames),
                frames=frames,
                latent=job.latent,
                size=sources.size,
                ranks=self._ranks,
            )
            return TensorLatents(torch.cat([block[1] for block in blocks if block is not None], dim=2))

        return latents(opened[0]), latents(opened[1])

    def decode_job(self, job: Job, latents: Tensor) -> Video:
        """Decode the latents (1, c, f, h, w) of a job that was checked already."""
        latents = latents.detach().float().cpu()
        decoder = self._networks.decoder(job)
        pictures = decode_frames(
            decoder,
            TensorLatents(latents),
            frames=range(job.config.frames),
            latent=job.latent,
            size=job.config.resolution,
            blocks=plan_blocks(job.config.decode, decoder.config, job.latent[1:]),
            ranks=self._ranks,
        )
        width, height = job.config.resolution
        frames = np.empty((job.config.frames, height, width, 3), dtype=np.uint8)
        with named_out_of_memory(str(self._ranks)):
            for index, picture in enumerate(itertools.islice(pictures, len(frames))):
                frames[index] = picture
        return Video(frames, latents, job.config.fps, metadata=job.tags())
