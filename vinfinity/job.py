"""A run that was checked against its model and its machine, before anything is computed."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from vinfinity import __version__
from vinfinity.config import RunConfig, digest, leaves
from vinfinity.denoise.samplers import Sampler, make_sampler
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.errors import InputError
from vinfinity.media.blocks import check_tile
from vinfinity.models.family import TextTokenizer
from vinfinity.models.unet3d.configs import UNetConfig
from vinfinity.parallel.launch import check_ranks
from vinfinity.parallel.place import find_place
from vinfinity.parallel.ranks import pick_device
from vinfinity.runs.edit import Footage, check_edit, footage
from vinfinity.runs.paths import check_files, output_path
from vinfinity.system.safetensors import read_header
from vinfinity.weights.card import ModelCard, read_card, weights_digest
from vinfinity.weights.dtypes import DTYPES
from vinfinity.weights.load import check_decoder, check_weights, empty_network, load_scheduler
from vinfinity.weights.lora import Lora, check_lora, read_lora


@dataclass(frozen=True)
class Job:
    """A run that was checked against its model, before any weight is read.

    footage: the frames that are computed. latent: (c, h, w) of one frame. size: (width, height) of the video in pixels.
    The settings below them are those of `config` that the user may leave to the model.
    """

    config: RunConfig
    card: ModelCard
    sampler: Sampler
    tokenizer: TextTokenizer
    footage: Footage
    latent: tuple[int, int, int]
    size: tuple[int, int]
    fps: int
    guidance: float
    trained_frames: int
    loras: tuple[Lora, ...] = ()

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 (hex) that tells two versions of the weights apart, LoRAs included."""
        return weights_digest(self.card.folder, loras=[lora.path for lora in self.loras])

    @property
    def decoder(self) -> Path:
        """The folder of the autoencoder that makes the pictures."""
        chosen = self.config.decoder
        return self.card.folder / "vae" if chosen is None else Path(chosen).expanduser()

    @cached_property
    def decoder_digest(self) -> str:
        """SHA-256 (hex) that tells two decoders apart."""
        return weights_digest(self.decoder)

    @property
    def texts(self) -> list[str]:
        """What the model is told: the negative prompt and the prompt, or the prompt alone where nothing is guided by
        a second prediction.
        """
        config = self.config
        alone = branches(config, self.card) == 1
        return [config.prompt] if alone else [config.negative or "", config.prompt]

    @property
    def splits_branches(self) -> bool:
        """Whether each guidance branch has ranks of its own."""
        return self.config.parallel.guidance == 2 and len(self.texts) == 2

    def concerns(self) -> list[str]:
        """What users should know before they wait: text that the model will not understand, or not see at all."""
        said = []
        if self.card.guidance_width is not None and self.config.negative:
            said.append(f"negative: has no effect: {self.card.name} takes guidance as an input")
        if self.config.parallel.guidance == 2 and not self.splits_branches:
            said.append("parallel.guidance: 2 has no effect: there is no second branch to take")
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


def prepare(config: RunConfig) -> Job:
    """Checks a configuration, completed from its model's card, against the model and the file system.

    Raises InputError (or WeightsError, one of its kinds) naming field, value and remedy.
    """
    check_files(config)
    card = read_card(config.model)
    # a configuration that was completed from the model's card has no gaps left
    assert config.pixels and config.steps and config.sampler and config.fps
    assert config.guidance is not None and config.attention.trained_frames is not None
    check_computing(config, card)
    latent = latent_shape(config, card)
    sampler = pick_sampler(config, load_scheduler(card.folder / "scheduler"))
    if config.edit.run is not None:
        check_edit(config, latent)
    computed = footage(config, steps=len(sampler.timesteps))
    check_ranks(gpus=config.gpus, device=config.device, frames=len(computed.frames))
    check_weights(card.folder, prefer_fp16=pick_dtype(config, pick_device(config.device)) != torch.float32)
    if config.decoder is not None:
        check_decoder(Path(config.decoder).expanduser(), card.geometry)
    check_tile(config.decode, downscale=card.geometry.downscale)
    loras = tuple(read_lora(text) for text in config.lora)
    if loras:
        network = empty_network(card.family.networks["unet"], card.folder / "unet")
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        for lora in loras:
            check_lora(lora, shapes)
    tokenizer = card.family.load_tokenizer(card.folder / "tokenizer", length=card.text_length)
    if config.noise_from is not None:
        check_noise(Path(config.noise_from), (1, latent[0], config.frames, *latent[1:]))
    return Job(
        config=config,
        card=card,
        sampler=sampler,
        tokenizer=tokenizer,
        footage=computed,
        latent=latent,
        size=config.pixels,
        fps=config.fps,
        guidance=config.guidance,
        trained_frames=config.attention.trained_frames,
        loras=loras,
    )


def check_computing(config: RunConfig, card: ModelCard) -> None:
    """Raises InputError where ranks are too few for both guidance branches, or the UNet too shallow for `reuse`."""
    place = find_place(os.environ)
    ranks = place.size if place is not None else config.gpus or 1
    if config.parallel.guidance == 2 and branches(config, card) == 2 and ranks < 2:
        problem = "gives each guidance branch ranks of its own, but there is one rank"
        raise InputError("parallel.guidance", 2, "use --gpus 2 or more, or leave it out", problem=problem)
    levels = len(card.config(UNetConfig).block_out_channels)
    if config.reuse.interval > 1 and config.reuse.depth >= levels:
        problem = f"leaves nothing to reuse of the {levels} levels of {card.name}"
        raise InputError("reuse.depth", config.reuse.depth, f"give at most {levels - 1}", problem=problem)


def latent_shape(config: RunConfig, card: ModelCard) -> tuple[int, int, int]:
    """(c, h, w) of one frame, enough to cover the size in pixels."""
    assert config.pixels is not None
    return card.geometry.latent_size(config.pixels)


def pick_sampler(config: RunConfig, scheduler: SchedulerConfig) -> Sampler:
    """The sampler on the model's schedule. Raises InputError where the two do not go together."""
    assert config.sampler is not None
    assert config.steps is not None
    try:
        return make_sampler(config.sampler, scheduler, steps=config.steps, eta=config.eta)
    except ValueError as error:
        raise InputError(
            "sampler", config.sampler, "choose other steps or another sampler", problem=f"{error}"
        ) from None


def branches(config: RunConfig, card: ModelCard) -> int:
    """Predictions of the UNet in a step: 2 where one without the prompt guides, else 1."""
    assert config.guidance is not None
    return 1 if config.guidance <= 1 or card.guidance_width is not None else 2


def check_noise(path: Path, shape: tuple[int, ...]) -> None:
    """Raises InputError where the file holds no tensor `noise` of that shape."""
    entry = read_header(path, field="noise_from").get("noise")
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
        *(("lora", f"{lora.path} at {lora.weight:g}, {len(lora.pairs)} layers") for lora in job.loras),
        *([("decoder", str(job.decoder))] if config.decoder is not None else []),
        ("device", f"{device}, {str(pick_dtype(config, device)).removeprefix('torch.')}"),
        ("sampler", f"{config.sampler}, {len(job.sampler.timesteps)} steps, guidance {job.guidance:g}"),
        ("attention", attention),
        ("seed", str(config.seed)),
        ("output", str(output_path(config))),
    ]
    return rows + [("warning", concern) for concern in job.concerns()]


def provenance(config: RunConfig) -> dict[str, object]:
    """What made a video: the code, the settings that are set, and their digest."""
    values = {key: value for key, value in leaves(config).items() if value is not None}
    return {"version": version(), "digest": digest(config), "config": values}


def version() -> str:
    """The code that a run's numbers come from."""
    return f"vinfinity {__version__}, torch {torch.__version__}"
