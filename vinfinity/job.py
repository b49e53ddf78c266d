"""A run that was checked against its model and this machine, before anything is computed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vinfinity import __version__
from vinfinity.config import (
    InputConfig,
    RunConfig,
    digest,
    leaves,
)
from vinfinity.denoise.flows import Schedule
from vinfinity.denoise.guidance import guidance_branches
from vinfinity.denoise.prompts import PromptSchedule, schedule_prompts
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.denoise.selection import Selection, select_all
from vinfinity.denoise.start import pick_sampler, schedule_of
from vinfinity.denoise.state import Sampler
from vinfinity.errors import InputError
from vinfinity.media.blocks import check_tile
from vinfinity.models.family import AUTOENCODER, SCHEDULER, TOKENIZER, TextTokenizer
from vinfinity.models.geometry import LatentGeometry
from vinfinity.parallel.devices import pick_device
from vinfinity.parallel.launch import check_ranks
from vinfinity.parallel.place import Place
from vinfinity.runs.earlier import EarlierRun
from vinfinity.runs.paths import check_inputs
from vinfinity.runs.together import FrameTensors
from vinfinity.system.files import to_json
from vinfinity.system.folders import expanded
from vinfinity.system.safetensors import read_header
from vinfinity.weights.card import ModelCard, files_digest, read_card, weights_digest
from vinfinity.weights.dtypes import depends_on_shapes, pick_dtype
from vinfinity.weights.load import check_decoder, check_weights, load_scheduler
from vinfinity.weights.lora import Lora, lora_targets, read_lora

# settings that decide which weights are read, and how
WEIGHT_SETTINGS = ("model", "lora", "decoder", "device", "dtype")


@dataclass(frozen=True)
class Job:
    """A run that was checked against its model, before any weight is read. Every rank gets a copy.

    schedule: the noise schedule that the model was trained with, from its scheduler_config.json, with the shift that is
    set. selection: the latent frames to compute. earlier: the run that is edited; None for a new video. latent: the
    shape (c, h, w) of one latent frame. latent_frames: their number in the whole video. prompts: the prompts over time,
    in latent frames. weights_digest, decoder_digest: SHA-256 (hex) of the weights (LoRAs included) and of the decoder,
    which tell their versions apart. noise_digest: SHA-256 of the file with the initial noise; "" without one. denoise:
    whether to compute latents; otherwise they exist, and are only decoded.
    """

    config: RunConfig
    card: ModelCard
    sampler: Sampler
    tokenizer: TextTokenizer
    selection: Selection
    earlier: EarlierRun | None
    latent: tuple[int, int, int]
    latent_frames: int
    prompts: PromptSchedule
    weights_digest: str
    decoder_digest: str
    loras: tuple[Lora, ...] = ()
    schedule: Schedule = field(default_factory=SchedulerConfig)
    noise_digest: str = ""
    denoise: bool = True

    @property
    def decoder(self) -> Path:
        """The folder of the autoencoder that decodes the latents."""
        return decoder_folder(self.config, self.card)

    @property
    def encoder(self) -> Path:
        """The folder of the autoencoder that encodes images: the model's own."""
        return self.card.folder / AUTOENCODER

    @property
    def guided(self) -> bool:
        """Whether steps have a second branch, for negative prompts (classifier-free guidance)."""
        return branches(self.config, self.card) == 2

    @property
    def texts(self) -> list[str]:
        """The distinct texts that guide the video: prompts, and negative prompts if they are used."""
        return self.prompts.texts(guided=self.guided)

    @property
    def pinned_images(self) -> dict[int, int]:
        """The latent frames that are set to an image, and the number of that image."""
        frames = {"input.first_frame": 0, "input.last_frame": self.latent_frames - 1}
        return {frames[key]: number for number, key in enumerate(self.config.input.pictures)}

    @property
    def splits_branches(self) -> bool:
        """Whether each guidance branch has its own ranks."""
        return self.config.parallel.split_guidance and self.guided and self.denoise

    def dtype(self, device: torch.device) -> torch.dtype:
        """Return the type of the denoiser's weights and arithmetic on a device."""
        return pick_dtype(self.config.dtype, device, half=self.card.family.half)

    def grouped(self, device: torch.device) -> bool:
        """Return whether ranks compute whole groups of frames, so that their number does not change the video."""
        # models with joint attention compute one latent frame at a time anyway
        joint = self.card.traits.denoiser.joint
        return not joint and depends_on_shapes(self.dtype(device), device.type)

    @property
    def facts(self) -> dict[str, str]:
        """What all ranks must agree on, by name."""
        return {
            "settings": digest(self.config),
            "weights": self.weights_digest,
            "decoder": self.decoder_digest,
            "noise": self.noise_digest,
            "work": "denoising" if self.denoise else "decoding",
            "version": version(),
        }

    def provenance(self) -> dict[str, object]:
        """Return what makes the video: the version, the settings and their digest, and the digests of the weights."""
        values = {key: value for key, value in leaves(self.config).items() if value is not None}
        return {
            "version": version(),
            "digest": digest(self.config),
            "config": values,
            "weights": self.weights_digest,
            "decoder": self.decoder_digest,
            "noise": self.noise_digest,
        }

    def tags(self) -> dict[str, str]:
        """Return the tags of the video file: the prompt, and the provenance as JSON."""
        made_by = to_json(self.provenance())
        return {"title": " / ".join(prompt.text for prompt in self.prompts.prompts), "comment": made_by}

    def kept_pieces(self) -> Iterable[FrameTensors]:
        """Return the frames that an edit keeps from the earlier run, a bounded number at a time."""
        return () if self.earlier is None else self.earlier.kept_pieces()


def check_images(config: InputConfig, geometry: LatentGeometry) -> None:
    """Raise InputError if frames are set to images but the model has no latents of single frames."""
    if geometry.time_downscale == 1:
        return
    for name, value in config.pictures.items():
        problem = "needs a model with latents for each frame, which this one does not have"
        raise InputError(name, value, "use another model, such as videocrafter2", problem=problem)


def prepare(
    config: RunConfig, place: Place | None = None, *, like: Job | None = None, denoise: bool = True
) -> Job:
    """Check a configuration against the model and the machine, without reading any weight.

    place: this process's place among the ranks that a launcher started, if the run is shared with them. like: a job
    that was just checked; if it has the same weights, they are not checked again. denoise: whether to compute latents;
    if they exist already, noise, LoRAs and an earlier run are neither checked nor part of the job.
    Raises InputError (or its subclass WeightsError) naming field, value and remedy.
    """
    check_inputs(config, denoise=denoise)
    known = like if like is not None and like.denoise and _same_weights(config, like.config) else None
    card = read_card(config.model) if known is None else known.card
    if denoise:
        check_computing(config, card, ranks=config.gpus or 1 if place is None else place.size)
    geometry = card.geometry
    latent, latent_frames = geometry.latent_size(config.resolution), geometry.latent_frames(config.frames)
    schedule = schedule_of(config, load_scheduler(card.folder / SCHEDULER, flow=card.family.flow))
    sampler = pick_sampler(config, schedule)
    prompts = schedule_prompts(config, geometry)
    earlier = EarlierRun.open(config, geometry) if denoise else None
    if earlier is None:
        selection = select_all(latent_frames, seed=config.seed)
    else:
        selection = earlier.select(config, prompts, steps=len(sampler.timesteps))
    check_ranks(gpus=config.gpus, device=config.device, frames=len(selection.frames), place=place)
    check_tile(config.decode, geometry)
    check_images(config.input, geometry)
    if known is None:
        half = pick_dtype(config.dtype, pick_device(config.device), half=card.family.half) != torch.float32
        check_weights(card.folder, prefer_fp16=half)
        if config.decoder is not None:
            check_decoder(decoder_folder(config, card), geometry)
        given = config.lora if denoise else ()
        targets = lora_targets(card) if given else ()
        loras = tuple(read_lora(text, targets) for text in given)
        digests = (
            weights_digest(card.folder, loras=[path for lora in loras for path in lora.files]),
            weights_digest(decoder_folder(config, card)),
        )
        tokenizer = card.family.load_tokenizer(card.folder / TOKENIZER, length=card.text_length)
    else:
        loras, tokenizer = known.loras, known.tokenizer
        digests = (known.weights_digest, known.decoder_digest)
    noise_digest = ""
    if config.noise_from is not None and denoise:
        noise = expanded(config.noise_from, field="noise_from")
        check_noise(noise, (1, latent[0], latent_frames, *latent[1:]))
        noise_digest = files_digest([("noise", noise)], field="noise_from")
    return Job(
        config=config,
        card=card,
        sampler=sampler,
        tokenizer=tokenizer,
        selection=selection,
        earlier=earlier,
        latent=latent,
        latent_frames=latent_frames,
        prompts=prompts,
        weights_digest=digests[0],
        decoder_digest=digests[1],
        loras=loras,
        schedule=schedule,
        noise_digest=noise_digest,
        denoise=denoise,
    )


def _same_weights(config: RunConfig, other: RunConfig) -> bool:
    """Return whether two configurations read the same files, in the same precision."""
    return all(getattr(config, name) == getattr(other, name) for name in WEIGHT_SETTINGS)


def decoder_folder(config: RunConfig, card: ModelCard) -> Path:
    """Return the folder of the autoencoder that decodes the latents: `decoder`, or the model's own."""
    if config.decoder is None:
        return card.folder / AUTOENCODER
    return expanded(config.decoder, field="decoder")


def check_computing(config: RunConfig, card: ModelCard, *, ranks: int) -> None:
    """Raise InputError if there are too few ranks for both guidance branches, or too few levels for `reuse`."""
    if config.parallel.split_guidance and branches(config, card) == 2 and ranks < 2:
        problem = "needs two or more ranks, but there is one"
        remedy = "use --gpus 2 or more, or remove it"
        raise InputError("parallel.split_guidance", True, remedy, problem=problem)
    levels = card.traits.denoiser.levels
    if config.reuse.interval > 1 and levels == 1:
        problem = f"reuses features of lower resolutions, which {card.name} does not have"
        raise InputError("reuse.interval", config.reuse.interval, "remove it", problem=problem)
    if config.reuse.interval > 1 and config.reuse.depth >= levels:
        problem = f"leaves nothing to reuse of the {levels} levels of {card.name}"
        raise InputError("reuse.depth", config.reuse.depth, f"use at most {levels - 1}", problem=problem)


def branches(config: RunConfig, card: ModelCard) -> int:
    """Return the number of guidance branches: 2 with classifier-free guidance, else 1."""
    return guidance_branches(config.guidance, distilled=card.distilled)


def check_noise(path: Path, shape: tuple[int, ...]) -> None:
    """Raise InputError if the file has no tensor `noise` of that shape."""
    entry = read_header(path, field="noise_from").get("noise")
    if entry is None:
        raise InputError("noise_from", path, "save it under the name noise", problem="has no tensor noise")
    if entry.shape != shape:
        problem = f"holds noise of shape {entry.shape}"
        raise InputError(
            "noise_from", path, f"this run needs {shape}: change frames or size", problem=problem
        )


def version() -> str:
    """Return the versions of the code that computes a run."""
    return f"vinfinity {__version__}, torch {torch.__version__}"
