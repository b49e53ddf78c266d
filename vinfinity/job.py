"""A run that was checked against its model and its machine, before anything is computed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch

from vinfinity import __version__
from vinfinity.config import (
    EditConfig,
    InputConfig,
    ReuseConfig,
    RunConfig,
    digest,
    leaves,
    timed_prompts,
)
from vinfinity.denoise.flows import FlowSchedule, Schedule
from vinfinity.denoise.guidance import guidance_branches
from vinfinity.denoise.prompts import PromptSchedule, schedule_prompts
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.denoise.selection import Selection, select_all
from vinfinity.denoise.start import pick_sampler, schedule_of
from vinfinity.denoise.state import Sampler
from vinfinity.errors import InputError, one_line
from vinfinity.media.blocks import check_tile
from vinfinity.models.family import AUTOENCODER, SCHEDULER, TOKENIZER, TextTokenizer
from vinfinity.models.geometry import LatentGeometry
from vinfinity.parallel.devices import fallen_back, pick_device
from vinfinity.parallel.launch import check_ranks
from vinfinity.parallel.place import Place
from vinfinity.runs.earlier import EarlierRun
from vinfinity.runs.first_pass import first_pass, naming_first_pass
from vinfinity.runs.paths import Destination, check_config_audio, check_inputs
from vinfinity.runs.together import FrameTensors
from vinfinity.system.files import to_json
from vinfinity.system.folders import expanded
from vinfinity.system.numbers import shown_rate
from vinfinity.system.safetensors import read_header
from vinfinity.weights.card import ModelCard, files_digest, read_card, weights_digest
from vinfinity.weights.dtypes import depends_on_shapes, emulated, pick_dtype
from vinfinity.weights.load import check_decoder, check_weights, load_scheduler
from vinfinity.weights.lora import Lora, lora_targets, read_lora

# the settings that say which weights are read, and how
OF_WEIGHTS = ("model", "lora", "decoder", "device", "dtype")
# the samplers that add the noise of `eta`
WITH_ETA = ("ddim", "videocrafter2")


@dataclass(frozen=True)
class Job:
    """A run that was checked against its model; no weight was read yet. It travels to all ranks.

    schedule: of the model's training, as its scheduler_config.json has it, with the shift that is set.
    selection: the latent frames to compute. earlier: the run that is edited, None for a new video.
    latent: (c, h, w) of one latent frame. latent_frames: of the whole video. prompts: in latent frames.
    weights_digest, decoder_digest: SHA-256 (hex) that tell versions of the weights (LoRAs included) and of the decoder
    apart. noise_digest: the same for the file of the initial noise, "" without one. denoise: whether latents are
    computed; otherwise they are there, and only decoded.
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
        """The folder of the autoencoder that encodes pictures, the model's own."""
        return self.card.folder / AUTOENCODER

    @property
    def guided(self) -> bool:
        """Whether steps have a branch for negative texts beside that for the prompts (classifier-free guidance)."""
        return branches(self.config, self.card) == 2

    @property
    def texts(self) -> list[str]:
        """The different texts that guide the video: prompts, and negative ones where they are used."""
        return self.prompts.texts(guided=self.guided)

    @property
    def held(self) -> dict[int, int]:
        """The latent frames that are held to pictures, and the number of the picture of each."""
        frames = {"input.first_frame": 0, "input.last_frame": self.latent_frames - 1}
        return {frames[key]: number for number, key in enumerate(self.config.input.pictures)}

    @property
    def splits_branches(self) -> bool:
        """Whether each guidance branch has ranks of its own."""
        return self.config.parallel.split_guidance and self.guided and self.denoise

    def dtype(self, device: torch.device) -> torch.dtype:
        """The type of the weights and of the network's arithmetic."""
        return pick_dtype(self.config.dtype, device, half=self.card.family.half)

    def grouped(self, device: torch.device) -> bool:
        """Whether ranks compute whole groups of frames, so that their number does not change the video."""
        # a model with joint attention computes a latent frame at a time
        joint = self.card.traits.denoiser.joint
        return not joint and depends_on_shapes(self.dtype(device), device.type)

    @property
    def facts(self) -> dict[str, str]:
        """What all ranks must agree on."""
        return {
            "settings": digest(self.config),
            "weights": self.weights_digest,
            "decoder": self.decoder_digest,
            "noise": self.noise_digest,
            "work": "denoising" if self.denoise else "decoding",
            "version": version(),
        }

    def provenance(self) -> dict[str, object]:
        """What made the video: the code, the settings that are set and their digest, the weights."""
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
        """Tags of the video: the prompt, and what made it, as JSON."""
        made_by = to_json(self.provenance())
        return {"title": " / ".join(prompt.text for prompt in self.prompts.prompts), "comment": made_by}

    def _emulated_on(self, device: torch.device) -> str:
        """The concern about a type that the device has no instructions for."""
        if device.type == "cuda":
            half = self.card.family.half
            better = half if half != "bf16" else "fp32"
            costs = "it is slow there and takes memory for all scores of attention"
            return f"dtype: this GPU has no instructions for bf16: {costs}; use {better}"
        name = self.config.dtype
        return f"dtype: this processor is 20 times slower in {name} than in fp32, or more; use fp32"

    def kept_pieces(self) -> Iterable[FrameTensors]:
        """The frames that an edit keeps from the earlier run, a bounded number at a time."""
        return () if self.earlier is None else self.earlier.kept_pieces()

    def concerns(self) -> list[str]:
        """What users should know before they wait: settings without effect, text that the model cannot use."""
        concerns = [ignored] if (ignored := self.schedule.ignored_by(self.config.sampler)) else []
        if fallback := fallen_back(self.config.device):
            concerns.append(fallback)
        device = pick_device(self.config.device)
        if emulated(self.dtype(device), device):
            concerns.append(self._emulated_on(device))
        concerns += self.without_effect() + self._geometry_concerns()
        sound, length = check_config_audio(self.config), Fraction(self.config.frames) / self.config.fps
        if self.config.sound is not None and sound is not None and sound < length:
            field, path = self.config.sound
            lengths = f"lasts {float(sound):.2f} s, the video {float(length):.2f} s"
            concerns.append(f"{field}: {path} {lengths}; the rest is silent")
        for text in self.texts:
            if cut := self.tokenizer(text).cut:
                concerns.append(f"the text encoder takes {self.tokenizer.length} tokens; cut off: {cut!r}")
            if unknown := self.card.unknown_words(text):
                known = "; ".join(
                    f"{group}: {', '.join(words)}" for group, words in self.card.vocabulary.items()
                )
                concerns.append(
                    f"the model {self.card.name} was never taught: {', '.join(unknown)}. It knows {known}"
                )
        return concerns

    def without_effect(self, group: str = "") -> list[str]:
        """Settings that were given and have no effect with this model or beside the others. group: the beginning of
        their keys.
        """
        config, traits, name = self.config, self.card.traits, self.card.name
        joint, levels = traits.denoiser.joint, traits.denoiser.levels
        edit, usual, steps = config.edit, EditConfig(), len(self.sampler.timesteps)
        # that of the model was not given
        negatives = {config.negative, *(prompt.negative for prompt in config.prompts)}
        negatives -= {None, "", self.card.defaults.get("negative")}
        found = {
            "negative": (
                bool(negatives) and not self.guided,
                f"{name} takes guidance as an input"
                if self.card.distilled
                else f"guidance is {config.guidance:g}; raise it above 1",
            ),
            "eta": (
                config.eta > 0 and config.sampler not in WITH_ETA,
                f"only the samplers {' and '.join(WITH_ETA)} use it",
            ),
            "fps_condition": (
                config.fps_condition is not None and not traits.denoiser.takes_fps,
                f"{name} does not take a frame rate as input",
            ),
            "preview": (config.preview >= steps, f"there are only {steps} steps"),
            "parallel.split_guidance": (
                config.parallel.split_guidance and not self.guided,
                "there is only one guidance branch",
            ),
            "reuse.depth": (
                config.reuse.depth != ReuseConfig().depth and config.reuse.interval == 1,
                "nothing is reused while reuse.interval is 1",
            ),
            "edit.blend": (edit.blend != usual.blend and edit.redo is None, "no frames are regenerated"),
            "edit.context": (edit.context != usual.context and edit.run is None, "no run is edited"),
            "attention.positions": (
                config.attention.positions != "auto" and not joint,
                f"{name} has no rotary positions",
            ),
            "attention.norm": (
                config.attention.norm != "video" and joint,
                f"{name} has no GroupNorm over time",
            ),
            "compute.skips": (
                config.compute.skips is not None and levels == 1,
                f"{name} has no skip connections",
            ),
            "decode.frames": (
                config.decode.frames is not None and self.card.geometry.time_downscale > 1,
                f"{name} decodes one latent frame at a time",
            ),
        }
        return [
            f"{key}: has no effect: {why}"
            for key, (given, why) in found.items()
            if given and key.startswith(group)
        ]

    def _geometry_concerns(self) -> list[str]:
        """What the model's latents cannot hold exactly."""
        config, geometry, concerns = self.config, self.card.geometry, []
        made = geometry.frames(self.latent_frames)
        if made > config.frames:
            step = geometry.time_downscale
            concerns.append(
                f"frames: {config.frames} is not a multiple of {step} plus 1; {made} are made and the last "
                f"{made - config.frames} left out"
            )
        width, height = (geometry.downscale * side for side in reversed(self.latent[1:]))
        if (width, height) != config.resolution and geometry.multiple > 1:
            step = geometry.downscale * geometry.multiple
            concerns.append(
                f"size: {config.size} is not a multiple of {step} pixels; {width}x{height} are made and cropped"
            )
        attention, joint = config.attention, self.card.traits.denoiser.joint
        attended = 2 * attention.local + 1 + attention.anchors
        if joint and self.latent_frames > attention.trained_frames != attended:
            concerns.append(
                f"attention: frames attend to {attended} latent frames (2 * local + 1 + anchors); "
                f"{self.card.name} was trained with {attention.trained_frames}"
            )
        return concerns


def check_start(config: InputConfig, geometry: LatentGeometry) -> None:
    """Raises InputError if frames are to be held to pictures by a model that has no latents of single frames."""
    for name, value in config.pictures.items() if geometry.time_downscale > 1 else ():
        problem = "needs a model with latents for each frame, which this one does not have"
        raise InputError(name, value, "use another model, such as videocrafter2", problem=problem)


def prepare(
    config: RunConfig, place: Place | None = None, *, like: Job | None = None, denoise: bool = True
) -> Job:
    """Check a configuration against the model and the machine; reads no weight.

    place: this process's place among the ranks of a launcher, for runs that are shared with them. like: a job that was
    checked just now; if it has the same weights, those are not checked again. denoise: whether latents are computed;
    otherwise they are there, and noise, LoRAs and an earlier run are neither checked nor part of the job.
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
    check_start(config.input, geometry)
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
    """Whether two configurations read the same files, in the same precision."""
    return all(getattr(config, name) == getattr(other, name) for name in OF_WEIGHTS)


def decoder_folder(config: RunConfig, card: ModelCard) -> Path:
    """The folder of the autoencoder that decodes the latents: `decoder`, or the model's own."""
    if config.decoder is None:
        return card.folder / AUTOENCODER
    return expanded(config.decoder, field="decoder")


def check_computing(config: RunConfig, card: ModelCard, *, ranks: int) -> None:
    """Raise InputError if there are too few ranks for both guidance branches, or too few levels for `reuse`."""
    if config.parallel.split_guidance and branches(config, card) == 2 and ranks < 2:
        problem = "gives each guidance branch ranks of its own, but there is one rank"
        remedy = "use --gpus 2 or more, or leave it out"
        raise InputError("parallel.split_guidance", True, remedy, problem=problem)
    levels = card.traits.denoiser.levels
    if config.reuse.interval > 1 and levels == 1:
        problem = f"reuses features of lower resolutions, which {card.name} does not have"
        raise InputError("reuse.interval", config.reuse.interval, "leave it out", problem=problem)
    if config.reuse.interval > 1 and config.reuse.depth >= levels:
        problem = f"leaves nothing to reuse of the {levels} levels of {card.name}"
        raise InputError("reuse.depth", config.reuse.depth, f"give at most {levels - 1}", problem=problem)


def branches(config: RunConfig, card: ModelCard) -> int:
    """Guidance branches of a step: 2 with classifier-free guidance, else 1."""
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


def describe(config: RunConfig, place: Place | None = None, *, denoise: bool = True) -> list[tuple[str, str]]:
    """What a run would do, as rows of a table; reads no weight. denoise: see `prepare`. Raises InputError like it."""
    job = prepare(config, place, denoise=denoise)
    before = first_pass(config, Destination.of(config).folder) if denoise else None
    if before is not None:
        with naming_first_pass():
            prepare(before, place)
    device = pick_device(config.device)
    channels, height, width = job.latent
    trained = config.attention.trained_frames
    plain = job.latent_frames <= trained
    unit = "frames" if job.card.geometry.time_downscale == 1 else "latent frames"
    shift = f", shift {job.schedule.shift:g}" if isinstance(job.schedule, FlowSchedule) else ""
    attention = (
        f"plain: no more than the {job.card.geometry.frames(trained)} trained frames"
        if plain
        else f"dual-scope: {config.attention.local} {unit} on either side, {config.attention.anchors} anchors"
    )
    rows = [
        (
            "video",
            f"{config.frames} frames of {config.size} at {shown_rate(config.fps)} fps"
            + (", a loop" if config.loop else ""),
        ),
        *_prompt_rows(config),
        ("latents", f"1x{channels}x{job.latent_frames}x{height}x{width}"),
        ("model", f"{job.card.name} ({job.card.folder})"),
        *(("lora", f"{lora.path} at {lora.weight:g}, {lora.layers()}") for lora in job.loras),
        *([("decoder", str(job.decoder))] if config.decoder is not None else []),
        ("device", f"{device}, {str(job.dtype(device)).removeprefix('torch.')}"),
        (
            "sampler",
            f"{config.sampler}, {len(job.sampler.timesteps)} steps, guidance {config.guidance:g}{shift}",
        ),
        ("attention", attention),
        ("seed", str(config.seed)),
        ("output", str(Destination.of(config).video)),
    ]
    return rows + [("warning", concern) for concern in job.concerns()]


def _prompt_rows(config: RunConfig) -> list[tuple[str, str]]:
    """A row for each prompt of a video that has several."""
    prompts = timed_prompts(config)
    changes = [
        "" if prompt.start == 0 else " (cut)" if prompt.cut else f" (blend {prompt.blend})"
        for prompt in prompts
    ]
    rows = [
        (f"frame {prompt.start}", f"{one_line(prompt.text)}{change}")
        for prompt, change in zip(prompts, changes, strict=True)
    ]
    return rows if len(rows) > 1 else []


def version() -> str:
    """The code that computed a run."""
    return f"vinfinity {__version__}, torch {torch.__version__}"
