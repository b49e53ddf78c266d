"""`Pipeline`, which keeps a model's networks loaded between videos."""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vinfinity.config import Prompt, RunConfig
from vinfinity.denoise.state import State
from vinfinity.denoising import prepare_denoising
from vinfinity.errors import InputError, OutOfMemoryError
from vinfinity.inputs import initial_state
from vinfinity.job import Job, prepare
from vinfinity.job_report import concerns
from vinfinity.media.blocks import plan_blocks
from vinfinity.media.decode import decode_frames
from vinfinity.media.encode import encode_frames
from vinfinity.media.latents import LatentSource, TensorLatents
from vinfinity.models.decoder import Decoder
from vinfinity.networks import Networks
from vinfinity.parallel.devices import fallen_back
from vinfinity.parallel.ranks import Ranks
from vinfinity.planning.fit import find_fit, networks_fit
from vinfinity.resolve import load_config
from vinfinity.runs.sources import Sources, check_sources, open_input, open_pictures
from vinfinity.system.out_of_memory import named_out_of_memory
from vinfinity.system.progress import logger
from vinfinity.video import Video

# a text, or a list of prompts over time
Prompts = str | Sequence[str | Mapping[str, object] | Prompt]

# settings that are fixed when `Pipeline` loads a model, and settings that only runs with files or several ranks have
LOADED = ("model", "device", "dtype", "lora", "decoder", "compile")
RUN_SETTINGS = (
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


def as_settings(prompt: Prompts) -> dict[str, object]:
    """Return the setting `prompt` for a text, or `prompts` for a list of prompts over time."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"prompts": [{"text": entry} if isinstance(entry, str) else entry for entry in prompt]}


def load_in_memory(
    prompt: Prompts, settings: Mapping[str, Any], *, fixed: Mapping[str, Any], allowed: Sequence[str] = ()
) -> RunConfig:
    """Return the settings of a video that is returned instead of written to files.

    settings: the caller's settings. fixed: settings that the caller cannot change. allowed: the names in RUN_SETTINGS
    that have an effect all the same. Raises InputError for unusable settings, and for settings that only affect runs
    that write files.
    """
    for name in settings:
        group = name.partition(".")[0]
        if group in RUN_SETTINGS and group not in allowed:
            raise _of_files(name, settings[name], "use vinfinity.generate_file, or Video.save")
    config = load_config(**as_settings(prompt), **fixed, **settings)
    if config.input.keep_audio:
        raise _of_files("input.keep_audio", True, "use vinfinity.generate_file")
    check_sources(config)
    return config


def _of_files(name: str, value: object, remedy: str) -> InputError:
    return InputError(name, value, remedy, problem="belongs to runs that write files")


class Pipeline:
    """A model loaded on one device, ready to generate any number of videos.

        pipe = vinfinity.Pipeline.from_pretrained("mini")
        video = pipe("a blue boat moving right", frames=64, seed=7)

    Its networks stay loaded if there is memory for all of them on top of what a video needs; otherwise each is loaded
    when it is needed, for every video.

    It holds no locks and installs no signal handlers: use it from a thread, in a notebook, or under a running event
    loop. Nothing is written to disk. For several GPUs or resumable runs, see `vinfinity.generate(gpus=...)` and
    `vinfinity.generate_file`.
    """

    def __init__(self, config: RunConfig) -> None:
        self._job = prepare(config)
        self._ranks = Ranks.of_one(config.device)
        self._said: set[str] = set()
        if fallback := fallen_back(config.device):
            self._warn([fallback])
        self._networks = Networks(self._ranks.device, several=True)
        # for a video of the model's own length and size; otherwise each network is loaded when it is needed
        if not networks_fit(self._job, self._ranks):
            return
        with named_out_of_memory(str(self._ranks)):
            self._networks.text_encoder(self._job)
            self._networks.denoiser(self._job)
            self._networks.decoder(self._job)

    @classmethod
    def from_pretrained(cls, model: str | Path = "mini", **settings: Any) -> "Pipeline":
        """Load a model: `mini`, the name of a fetched model, or a folder in diffusers layout.

        settings: device, dtype, lora, decoder and compile, as on the command line. Raises InputError.
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
        """Generate a video.

        prompt: a text, or a list of prompts over time, such as `["a red ball", {"at": "50%", "text": "a blue boat"}]`.
        settings: any setting of a video, such as frames, seed, steps or `attention={"local": 4}`.

        Raises InputError for unusable settings, NotFiniteError for NaN or infinite values, OutOfMemoryError.
        """
        job = self._prepared(prompt, settings)
        self._warn(concerns(job))
        [final] = deque(self._denoise(job), maxlen=1)
        return self._decode(job, final.x)

    def denoise(self, prompt: Prompts, **settings: Any) -> Iterator[State]:
        """Yield the state after each denoising step: `state.step`, and `state.x`, latents (1, c, f, h, w) fp32.

        Settings are checked immediately, before the first state is requested. Raises the same errors as a call of the
        pipeline.
        """
        job = self._prepared(prompt, settings)
        self._warn(concerns(job))
        return self._denoise(job)

    def decode(self, latents: State | Tensor, **settings: Any) -> Video:
        """Decode latents (1, c, f, h, w), or the latents of a state, into a video.

        settings: size, fps and the group `decode`. Raises InputError, OutOfMemoryError, or NotFiniteError if frames are
        NaN or infinite.
        """
        x = latents.x if isinstance(latents, State) else latents
        geometry = self._job.card.geometry
        height, width = (geometry.downscale * side for side in x.shape[3:])
        given = {"size": f"{width}x{height}", **settings, "frames": geometry.frames(x.shape[2])}
        return self._decode(self._prepared("", given), x)

    def _warn(self, concerns: Sequence[str]) -> None:
        """Log what users should know before they wait, each concern once."""
        for concern in concerns:
            if concern not in self._said:
                logger.warning("%s", concern)
        self._said.update(concerns)

    def _prepared(self, prompt: Prompts, settings: Mapping[str, Any]) -> Job:
        loaded = self._job.config
        for name in LOADED:
            if name in settings:
                remedy = "load another pipeline with Pipeline.from_pretrained"
                raise InputError(name, settings[name], remedy, problem="was fixed when the model was loaded")
        fixed = {name: getattr(loaded, name) for name in LOADED}
        config = load_in_memory(prompt, settings, fixed=fixed)
        if config.two_passes:
            raise _of_files("first_pass.size", config.first_pass.size, "use vinfinity.generate_file")
        return prepare(config)

    def _denoise(self, job: Job) -> Iterator[State]:
        frames = job.selection.frames
        team = self._ranks.team(len(frames), split=False, grouped=job.grouped(self.device))
        with named_out_of_memory(str(self._ranks)):
            fit = find_fit(job, self._ranks, loaded=self._networks.bytes, keep=True)
            self._networks.keep(job, ample=fit.keeps)
            video, pictures = self._encode(job)
            denoising = prepare_denoising(
                job,
                self._networks,
                self._ranks,
                team=team,
                exchange=team.exchange(),
                fit=fit,
                pictures=pictures,
            )
            for state, _ in denoising.steps_from(initial_state(job, frames, video)):
                yield state

    def _encode(self, job: Job) -> tuple[LatentSource | None, LatentSource | None]:
        """Return the latents of the video and of the images that a job starts from."""
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
            self._warn(sources.concerns())
            blocks = encode_frames(
                encoder,
                sources.read,
                latent_frames=range(job.card.geometry.latent_frames(sources.frames)),
                frames=sources.frames,
                latent=job.latent,
                size=sources.size,
                ranks=self._ranks,
            )
            return TensorLatents(torch.cat([block[1] for block in blocks if block is not None], dim=2))

        return latents(opened[0]), latents(opened[1])

    def _decode(self, job: Job, latents: Tensor) -> Video:
        """Decode latents. If memory runs out, free all networks but the decoder, and try once more."""
        try:
            return self._decode_at_once(job, latents)
        except OutOfMemoryError:
            if not self._networks.bytes:
                raise
        self._networks.keep(job, ample=False)
        return self._decode_at_once(job, latents)

    def _decode_at_once(self, job: Job, latents: Tensor) -> Video:
        with named_out_of_memory(str(self._ranks)):
            return decode_video(job, latents, self._networks.decoder(job), self._ranks)


def decode_video(job: Job, latents: Tensor, decoder: Decoder, ranks: Ranks) -> Video:
    """Decode the latents (1, c, f, h, w) of a job on one rank. Raises NotFiniteError, OutOfMemoryError."""
    latents = latents.detach().float().cpu()
    pictures = decode_frames(
        decoder,
        TensorLatents(latents),
        frames=range(job.config.frames),
        latent=job.latent,
        size=job.config.resolution,
        blocks=plan_blocks(job.config.decode, decoder.config, job.latent[1:]),
        ranks=ranks,
    )
    width, height = job.config.resolution
    frames = np.empty((job.config.frames, height, width, 3), dtype=np.uint8)
    for index, picture in enumerate(itertools.islice(pictures, len(frames))):
        frames[index] = picture
    return Video(frames, latents, job.config.fps, metadata=job.tags())
