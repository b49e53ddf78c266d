"""The run as frozen dataclasses, and how they are put together from files and the command line.

A value is taken from the last of these that names it:

    defaults < the model's card < YAML file (after its `base`) < key=value arguments < flags

`load` merges all but the card and remembers where each value came from; `complete` then fills what is still
None from the card of the model that was chosen. The dataclasses check themselves, so a RunConfig that exists
is usable; whatever is not raises InputError: one line that names the field, the value, where it came from and
the remedy.

This is the only module that knows OmegaConf. It imports it where it is used, to keep `vinfinity --help`
instant.
"""

import dataclasses
import hashlib
import io
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from vinfinity.errors import InputError, nearest

Sampler = Literal["ddim", "dpmsolver++", "sde-dpmsolver++", "videocrafter2", "lcm"]
Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "fp32", "fp16", "bf16"]
Memory = Literal["auto", "low", "fast"]
PixelFormat = Literal["yuv420p", "yuv422p", "yuv444p"]
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
]

SMALLEST_SIDE, LARGEST_SIDE = 16, 8192  # pixels; beyond the larger one H.264 has no level

# Settings that change how a run is carried out, shown or written down, but not the latents it computes.
NOT_OF_THE_VIDEO = (
    "gpus",
    "out",
    "overwrite",
    "resume",
    "checkpoint",
    "device",
    "memory",
    "compile",
    "compute",
    "save_latents",
    "decoder",
    "parallel",
    "decode",
    "video",
)


def _check(ok: bool, field: str, value: object, *, problem: str, remedy: str) -> None:
    if not ok:
        raise InputError(field, value, remedy, problem=problem)


@dataclass(frozen=True)
class Phase:
    """The biases of temporal attention's two scopes while the denoising timestep t is above `above`.

    They are added to the logits of neighbours (`local`) and `anchors`; -inf switches a scope off.
    """

    above: int
    local: float
    anchors: float


@dataclass(frozen=True)
class AttentionConfig:
    """Dual-scope attention, for videos longer than the model's trained clip (arXiv 2406.16260)."""

    local: int = 8  # a frame sees this many frames before and after it
    anchors: int = 16  # frames spread over the whole video that every frame sees
    schedule: tuple[Phase, ...] = (
        Phase(above=800, local=0.0, anchors=10.0),
        Phase(above=-1, local=10.0, anchors=0.0),
    )
    entropy_scaling: bool = False  # logits times log(keys) / log(trained keys)
    norm: Literal["video", "rank"] = "video"  # temporal GroupNorm over all frames, or over those of one rank
    trained_frames: int | None = (
        None  # up to this many frames attention is plain; None: the model's own number
    )

    def __post_init__(self) -> None:
        _check(
            self.local >= 0,
            "attention.local",
            self.local,
            problem="is negative",
            remedy="0 is a frame by itself, 8 the default",
        )
        _check(
            self.anchors >= 0,
            "attention.anchors",
            self.anchors,
            problem="is negative",
            remedy="0 means none, 16 is the default",
        )
        if self.trained_frames is not None:
            _check(
                self.trained_frames >= 1,
                "attention.trained_frames",
                self.trained_frames,
                problem="is less than 1",
                remedy="give the frames of the model's training clips, often 16",
            )
        self._check_schedule()

    def phase(self, t: float) -> Phase:
        """The phase that holds at denoising timestep `t` (>= 0): the first whose `above` is below it."""
        return next(phase for phase in self.schedule if phase.above < t)

    def _check_schedule(self) -> None:
        key = "attention.schedule"
        shown = "[" + ", ".join(f"above {phase.above}" for phase in self.schedule) + "]"
        above = [phase.above for phase in self.schedule]
        _check(
            bool(above) and above[-1] == -1,
            key,
            shown,
            problem="does not reach the last timestep",
            remedy="end it with a phase `above: -1`, which holds down to timestep 0",
        )
        _check(
            all(first > second for first, second in pairwise(above)),
            key,
            shown,
            problem="is not in descending order",
            remedy="list the phases from the first, noisy timesteps (high `above`) to the last",
        )
        for index, phase in enumerate(self.schedule):
            for scope in ("local", "anchors"):
                bias = getattr(phase, scope)
                _check(
                    not math.isnan(bias) and bias != math.inf,
                    f"{key}[{index}].{scope}",
                    bias,
                    problem="is not a bias",
                    remedy="give a finite number, or -inf to switch the scope off",
                )
            sees_anchors = phase.anchors > -math.inf and self.anchors > 0
            _check(
                phase.local > -math.inf or sees_anchors,
                f"{key}[{index}]",
                f"local {phase.local}, anchors {phase.anchors} with attention.anchors {self.anchors}",
                problem="leaves frames with nothing to attend to",
                remedy="keep one scope finite, and at least one anchor where local is -inf",
            )


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks work together."""

    timeout: float = 120.0  # seconds after which a rank that is waited for counts as lost
    guidance: Literal[1, 2] = 1  # 2: half of the ranks take each guidance branch

    def __post_init__(self) -> None:
        _check(
            0 < self.timeout < math.inf,
            "parallel.timeout",
            self.timeout,
            problem="is not a positive number of seconds",
            remedy="120 is the default",
        )


def parse_interval(text: str) -> tuple[Literal["steps", "seconds", "auto", "never"], float]:
    """How often to write checkpoints: a unit and how many of it, 0 for `auto` and `never`. Raises InputError."""
    if text in ("auto", "never"):
        return typing.cast(Literal["auto", "never"], text), 0
    match = re.fullmatch(r"([1-9]\d{0,5}) ?(steps?|s|min|h)", text)
    if match is None:
        raise InputError(
            "checkpoint.every",
            text,
            "write a number of `steps`, of `s`, `min` or `h`, as in 10min, or else auto or never",
            problem="is no interval",
        )
    if match[2].startswith("step"):
        return "steps", int(match[1])
    return "seconds", int(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]]


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run under way, so that it can go on after whatever ended it."""

    every: str = "auto"  # `5 steps`, `10min` (s, min, h), `auto` by time for under 2 % of it, or `never`
    keep: int = 2  # the newest ones, so that one may be damaged

    def __post_init__(self) -> None:
        parse_interval(self.every)
        _check(
            self.keep >= 1,
            "checkpoint.keep",
            self.keep,
            problem="is less than 1",
            remedy="2 is the default: should the newest be damaged, the one before it serves",
        )


@dataclass(frozen=True)
class ComputeConfig:
    """How UNet calls are carried out, where `memory` should not choose: memory and speed change, the video does not."""

    branches: Literal[1, 2] | None = None  # guidance branches at once
    skips: Literal["device", "host"] | None = None  # where skip connections wait for the way up
    stretch: int | None = None  # MiB that a layer works on at once

    def __post_init__(self) -> None:
        if self.stretch is not None:
            _check(
                1 <= self.stretch <= 65536,
                "compute.stretch",
                self.stretch,
                problem="is not between 1 and 65536 MiB",
                remedy="4 suits a CPU, 256 a GPU; null leaves it to `memory`",
            )


@dataclass(frozen=True)
class ReuseConfig:
    """Deep features of the UNet kept over several steps (DeepCache, Ma et al. 2024): faster, and another video."""

    interval: int = 1  # the whole UNet runs in every so many-th step; 1: in every step
    depth: int = 1  # levels that run in the other steps, from the outermost

    def __post_init__(self) -> None:
        _check(
            1 <= self.interval <= 1000,
            "reuse.interval",
            self.interval,
            problem="is not between 1 and 1000",
            remedy="1 switches reuse off, 2 and 3 are usual",
        )
        _check(
            self.depth >= 1,
            "reuse.depth",
            self.depth,
            problem="is less than 1",
            remedy="1 keeps all but the outermost level of the UNet",
        )


@dataclass(frozen=True)
class EditConfig:
    """An earlier run whose frames stay as they are; `vinfinity redo` and `vinfinity extend` set these."""

    run: str | None = None  # its folder NAME.run
    redo: str | None = None  # FROM:TO, the frames of it that are made anew, without TO
    blend: int = 4  # frames at each end of them that depart from the earlier ones gradually
    context: int = 16  # frames on either side, besides the anchors, that what is made anew is to fit to

    def __post_init__(self) -> None:
        start, stop = _parse_stretch(self.redo)
        _check(
            self.redo is None or start < stop,
            "edit.redo",
            self.redo,
            problem="holds no frame",
            remedy="write it as FROM:TO, such as 40:60",
        )
        _check(
            self.redo is None or self.run is not None,
            "edit.redo",
            self.redo,
            problem="belongs to no run",
            remedy="use `vinfinity redo RUN --frames FROM:TO`",
        )
        _check(
            self.blend >= 0,
            "edit.blend",
            self.blend,
            problem="is negative",
            remedy="0 departs at once, 4 is the default",
        )
        _check(
            self.context >= 1,
            "edit.context",
            self.context,
            problem="is less than 1",
            remedy="16 is the default; more is slower, and hardly better",
        )

    @property
    def stretch(self) -> range:
        """The frames that are made anew."""
        return range(*_parse_stretch(self.redo))


def _parse_stretch(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 0
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if match is None:
        raise InputError(
            "edit.redo", text, "write it as FROM:TO, such as 40:60", problem="is no stretch of frames"
        )
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class DecodeConfig:
    """From latents to frames."""

    where: Literal["rank0", "ranks"] = "rank0"  # who decodes; the file is the same
    frames: int | None = None  # frames decoded at once; None: as many as take 512 MiB together, at most 8
    tile: int | None = None  # pixels of a tile's side, a multiple of 32; None: frames are decoded whole

    def __post_init__(self) -> None:
        if self.frames is not None:
            _check(
                self.frames >= 1,
                "decode.frames",
                self.frames,
                problem="is less than 1",
                remedy="give a number of frames, or null to choose it by their size",
            )
        if self.tile is not None:
            _check(
                32 <= self.tile <= LARGEST_SIDE,
                "decode.tile",
                self.tile,
                problem=f"is not between 32 and {LARGEST_SIDE} pixels",
                remedy="512 is usual, and null decodes frames whole",
            )


@dataclass(frozen=True)
class VideoConfig:
    """The MP4 and what is written beside it."""

    crf: int = 18  # x264's constant rate factor: 0 lossless, 18 hardly to be told from it, 51 worst
    preset: Preset = "medium"  # x264's: slower ones make smaller files
    pixel_format: PixelFormat = "yuv420p"  # the one every player knows; yuv444p keeps full colour resolution
    metadata: bool = True  # prompt, seed and settings inside the MP4
    sheet: bool = True  # a PNG of evenly spread frames beside the MP4

    def __post_init__(self) -> None:
        _check(
            0 <= self.crf <= 51,
            "video.crf",
            self.crf,
            problem="is not between 0 and 51",
            remedy="18 is near lossless, 23 x264's default",
        )


@dataclass(frozen=True)
class RunConfig:
    """One video to generate. Fields that are None are filled from the model's card by `complete`."""

    prompt: str = ""
    negative: str | None = None
    frames: int = 96
    gpus: int | None = None  # ranks to start; None: one, or those of torchrun
    model: str = "mini"  # the embedded model, a folder in diffusers layout, or the name of a published model
    lora: tuple[str, ...] = ()  # additions to the model, each FILE.safetensors or FILE.safetensors:WEIGHT
    decoder: str | None = None  # folder of another autoencoder for the same latents; None: the model's own
    size: str | None = None  # "WxH" in pixels, any numbers from 16 on
    fps: int | None = None  # playback speed, and the fps the model is told where it wants one
    fps_condition: int | None = None  # the fps the model is told, where it should differ from `fps`
    seed: int = 0
    steps: int | None = None
    sampler: Sampler | None = None
    guidance: float | None = None  # weight of the prompt; 1 switches guidance off
    eta: float = 0.0  # noise of the ddim and videocrafter2 samplers: 0 none, 1 as much as DDPM
    out: str | None = None  # None: named after the prompt, in the working directory
    overwrite: bool = False
    resume: bool = False  # go on with the run that `out` belongs to, where there is one
    device: Device = "auto"
    dtype: Dtype = "auto"
    memory: Memory = "auto"  # low and fast fix what auto chooses by the memory at hand
    compile: bool = False  # compile the UNet's per-frame layers: minutes at the start, faster steps
    noise_from: str | None = None  # safetensors file with the initial noise, tensor `noise` (1, 4, F, h, w)
    save_latents: str | None = (
        None  # safetensors file for the final latents, tensor `latents` (1, 4, F, h, w)
    )
    attention: AttentionConfig = AttentionConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    compute: ComputeConfig = ComputeConfig()
    reuse: ReuseConfig = ReuseConfig()
    edit: EditConfig = EditConfig()
    decode: DecodeConfig = DecodeConfig()
    video: VideoConfig = VideoConfig()

    def __post_init__(self) -> None:
        if self.prompt:  # "" means that none was given; see `require_prompt`
            _check(
                bool(self.prompt.strip()),
                "prompt",
                self.prompt,
                problem="is blank",
                remedy="say what the video should show",
            )
        for key in ("prompt", "negative"):
            text = getattr(self, key) or ""
            _check(
                text.isprintable() or not any("\ud800" <= sign <= "\udfff" for sign in text),
                key,
                text.encode("utf-8", "replace").decode(),
                problem="holds bytes that are no UTF-8 text",
                remedy="write it in UTF-8",
            )
        _check(
            self.frames >= 1,
            "frames",
            self.frames,
            problem="is less than 1",
            remedy="ask for at least one frame",
        )
        if self.gpus is not None:
            _check(
                self.gpus >= 1,
                "gpus",
                self.gpus,
                problem="is less than 1",
                remedy="ask for at least one, or leave it out",
            )
            _check(
                self.gpus <= self.frames,
                "gpus",
                self.gpus,
                problem=f"is more than the {self.frames} frames there are to share",
                remedy=f"ask for {self.frames} at most",
            )
        _check(
            bool(self.model.strip()),
            "model",
            self.model,
            problem="is blank",
            remedy="name a model or its folder, such as mini",
        )
        if self.size is not None:
            parse_size(self.size)
        for key in ("fps", "fps_condition"):
            value = getattr(self, key)
            if value is not None:
                _check(
                    1 <= value <= 240,
                    key,
                    value,
                    problem="is not between 1 and 240",
                    remedy="24 is the speed of cinema",
                )
        _check(
            0 <= self.seed < 2**63,
            "seed",
            self.seed,
            problem="is not between 0 and 2^63 - 1",
            remedy="give another number",
        )
        if self.steps is not None:
            _check(
                1 <= self.steps <= 1000,
                "steps",
                self.steps,
                problem="is not between 1 and 1000",
                remedy="30 to 50 are usual",
            )
        if self.guidance is not None:
            _check(
                1 <= self.guidance < math.inf,
                "guidance",
                self.guidance,
                problem="is not a finite number from 1 on",
                remedy="1 switches guidance off, 7 to 12 are usual",
            )
        _check(
            0 <= self.eta <= 1,
            "eta",
            self.eta,
            problem="is not between 0 and 1",
            remedy="0 adds no noise, 1 as much as DDPM",
        )

    @property
    def pixels(self) -> tuple[int, int] | None:
        """(width, height) of the video in pixels, None as long as `size` is."""
        return None if self.size is None else parse_size(self.size)


@dataclass(frozen=True)
class Resolved:
    """A configuration, and where each value came from: dotted key -> `default`, `model mini`, `--seed`..."""

    config: RunConfig
    origins: Mapping[str, str]


def load(
    yaml: Path | None, *, overrides: Sequence[str] = (), flags: Mapping[str, object] | None = None
) -> Resolved:
    """Merges defaults, a YAML file with its bases, `key=value` arguments and flags (later ones win).

    `flags` maps config keys to values or their text; those that are None were not given. In YAML, values may
    refer to others in OmegaConf's way, as in `out: videos/${seed}.mp4`. Raises InputError.
    """
    layers = [_Layer("default", leaves(RunConfig()))]
    if yaml is not None:
        layers += _read_yaml(yaml)
    layers.append(_Layer("command line", _parse_overrides(overrides)))
    for key, value in (flags or {}).items():
        if value is not None:
            flag = f"--{key.replace('_', '-')}"
            layers.append(
                _Layer(flag, {key: _read_text(key, value, origin=flag) if isinstance(value, str) else value})
            )
    origins = {key: layer.origin for layer in layers for key in layer.values}
    return Resolved(config=_build_config(_merge(layers), origins), origins=origins)


def complete(resolved: Resolved, defaults: Mapping[str, object], *, origin: str) -> Resolved:
    """Fills the values that are still None from a model's card: dotted config key -> value.

    `origin` names the card, such as `model mini`. Raises InputError where the card's values are not usable.
    """
    values = leaves(resolved.config)
    origins = dict(resolved.origins)
    for key, value in defaults.items():
        _check_key(key, origin=origin)
        if values[key] is None and value is not None:
            values[key] = value
            origins[key] = origin
    return Resolved(config=_build_config(_nest(values), origins), origins=origins)


def require_prompt(config: RunConfig) -> None:
    """Raises InputError where the configuration has no prompt."""
    if not config.prompt:
        remedy = 'say what the video should show, as in --prompt "a red ball"'
        raise InputError("prompt", "none given", remedy)


def ignored(resolved: Resolved) -> list[str]:
    """One sentence for each setting that the user gave but that has no effect beside the others."""
    config = resolved.config
    said = []
    if config.eta > 0 and config.sampler not in (None, "ddim", "videocrafter2"):
        said.append(f"eta: {config.eta} has no effect with the sampler {config.sampler}; it belongs to ddim")
    chosen = not resolved.origins["negative"].startswith("model ")
    if config.negative and chosen and config.guidance is not None and config.guidance <= 1:
        said.append(f"negative: has no effect while guidance is {config.guidance:g}; raise it above 1")
    return said


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels of a size written as `512x320`. Raises InputError."""
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if match is None:
        raise InputError(
            "size", text, "write it as WIDTHxHEIGHT, such as 512x320", problem="is not a size in pixels"
        )
    width, height = int(match[1]), int(match[2])
    for side in (width, height):
        _check(
            SMALLEST_SIDE <= side <= LARGEST_SIDE,
            "size",
            text,
            problem="is not usable",
            remedy=f"each side takes {SMALLEST_SIDE} to {LARGEST_SIDE} pixels",
        )
    return width, height


def known_keys() -> list[str]:
    """All dotted keys of the configuration, in order."""
    return list(leaves(RunConfig()))


def leaves(config: RunConfig) -> dict[str, object]:
    """Dotted key -> value, for all values of the configuration in order; plain types throughout."""
    return dict(_leaves(dataclasses.asdict(config)))


def to_yaml(config: RunConfig, *, origins: Mapping[str, str] | None = None) -> str:
    """The configuration as YAML that `load` reads back to an equal one.

    With `origins`, a comment above each value that is not the default says where it came from.
    """
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.create(_nest({key: _literal(v) for key, v in leaves(config).items()})))
    lines: list[str] = []
    group = ""
    for line in text.splitlines():
        if match := re.match(r"(  )?(\w+):", line):
            indent, name = match[1] or "", match[2]
            group = group if indent else f"{name}."
            origin = (origins or {}).get(f"{group}{name}" if indent else name, "default")
            lines += [f"{indent}# {origin}"] if origin != "default" else []
        lines.append(line)
    return "\n".join(lines) + "\n"


def of_the_video(key: str) -> bool:
    """Whether a dotted key changes the latents that a run computes."""
    return key.partition(".")[0] not in NOT_OF_THE_VIDEO


def digest(config: RunConfig) -> str:
    """SHA-256 (hex) over all that determines the latents: the same on any number of ranks and on any device."""
    values = {key: value for key, value in leaves(config).items() if of_the_video(key)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# ---- layers: flat mappings from dotted keys to plain values ----


@dataclass(frozen=True)
class _Layer:
    origin: str
    values: Mapping[str, object]


def _leaves(values: Mapping[Any, object], *, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of a nested mapping. Groups are opened, a list of phases is one value."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and (value or key in _groups()):
            yield from _leaves(value, prefix=f"{key}.")
        elif isinstance(value, tuple):
            yield key, list(value)
        elif value is None and key in _groups():
            continue  # `attention:` with nothing under it, as it is left when its lines are commented out
        else:
            yield key, value


def _groups() -> dict[str, Any]:
    """The groups of the configuration: name -> dataclass."""
    hints = typing.get_type_hints(RunConfig)
    return {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}


def _nest(values: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = value
    return nested


def _merge(layers: Sequence[_Layer]) -> dict[str, Any]:
    """The layers as one nested mapping, references such as `${seed}` replaced. Raises InputError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    raw = {key: value for layer in layers for key, value in layer.values.items()}
    try:
        merged = OmegaConf.merge(*(_nest(layer.values) for layer in layers))
        values = typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise InputError(
            key or "configuration",
            raw.get(key, ""),
            "refer to another key as ${seed}, or write \\${ for the characters themselves",
            problem=f"cannot be resolved ({str(error).splitlines()[0]})",
        ) from error
    for key, value in raw.items():
        if value == "???":  # OmegaConf's mark for a value to come; a prompt may well be just that
            group, _, name = key.rpartition(".")
            (values[group] if group else values)[name] = value
    return values


def _read_yaml(path: Path, *, above: tuple[Path, ...] = ()) -> list[_Layer]:
    """The layers of a YAML file: those of its base first, then its own. Raises InputError."""
    from omegaconf import OmegaConf

    resolved = path.resolve()
    if resolved in above:
        chain = " -> ".join(str(file.name) for file in (*above, resolved))
        raise InputError(
            "base", path, "remove one of the `base` lines", problem=f"leads in a circle ({chain})"
        )
    field = "base" if above else "--config"
    if not path.is_file():
        raise InputError(
            field,
            path,
            "check the path" + (f" (it is relative to {above[-1]})" if above else ""),
            problem="is no file",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            field, path, "check its permissions and encoding (UTF-8)", problem="cannot be read"
        ) from error
    try:
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except OSError:  # OmegaConf's word for a file that holds a single value
        values = None
    except Exception as error:  # PyYAML's and OmegaConf's errors have no common base
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or type(error).__name__
        raise InputError(
            field, path, "correct the file", problem=f"is not valid YAML{where} ({what})"
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            field, path, "write it as lines of `key: value`", problem="holds no mapping of keys to values"
        )
    base = values.pop("base", None)
    layers: list[_Layer] = []
    if base is not None:
        if not isinstance(base, str):
            raise InputError("base", base, "name one YAML file", problem="is not a path", source=str(path))
        layers = _read_yaml(path.parent / base, above=(*above, resolved))
    own = dict(_leaves(values))
    for key in own:
        _check_key(key, origin=str(path), value=own[key])
    return [*layers, _Layer(str(path), own)]


def _parse_overrides(overrides: Sequence[str]) -> dict[str, object]:
    """`key=value` arguments as a flat mapping. Raises InputError."""
    values: dict[str, object] = {}
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals:
            raise InputError(
                "argument",
                argument,
                "settings are written key=value, such as attention.local=4, and a prompt as --prompt TEXT",
                problem="is not understood",
            )
        _check_key(key, origin="command line", value=text)
        values[key] = _read_text(key, text, origin="command line")
    return values


def _read_text(key: str, text: str, *, origin: str) -> object:
    """What was written for `key` on the command line: text for keys that hold text, YAML for the others."""
    from omegaconf import OmegaConf

    accepted = _accepted(_type_of(key))
    if text == "null" and types.NoneType in accepted:
        return None
    choices = [
        choice for kind in accepted if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)
    ]
    if str in accepted or any(isinstance(choice, str) for choice in choices):
        return _literal(text)  # a prompt may hold colons, braces or a lone `no`
    try:
        parsed = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))
        return typing.cast(dict[str, object], parsed)["value"]
    except Exception as error:  # PyYAML's and OmegaConf's errors have no common base
        raise InputError(
            key,
            text,
            "check its brackets, and quote it for the shell",
            problem="is not valid YAML",
            source=origin,
        ) from error


def _literal(value: object) -> object:
    """`value` such that OmegaConf takes it as it stands: text from the command line holds no references."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)


def _check_key(key: str, *, origin: str, value: object = None) -> None:
    if key in known_keys():
        return
    if key in _groups():
        inside = next(known for known in known_keys() if known.startswith(f"{key}."))
        raise InputError(
            key, value, f"name one of its settings, such as {inside}", problem="is a group", source=origin
        )
    meant = nearest(key, known_keys())
    remedy = f"did you mean {meant}?" if meant else "`vinfinity config` lists all settings"
    raise InputError(key, value, remedy, problem="belongs to no known setting", source=origin)


# ---- from plain values to dataclasses ----


def _build_config(values: Mapping[str, Any], origins: Mapping[str, str]) -> RunConfig:
    """RunConfig from a nested mapping; errors name where the value came from. Raises InputError."""
    try:
        return typing.cast(RunConfig, _build(RunConfig, values, prefix=""))
    except InputError as error:
        origin = origins.get(error.field.partition("[")[0], "default")
        if origin == "default":
            raise
        raise error.said_by(origin) from error


def _build(kind: type, values: Mapping[Any, Any], *, prefix: str) -> object:
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            meant = nearest(str(name), list(hints))
            raise InputError(
                f"{prefix}{name}",
                values[name],
                f"did you mean {meant}?" if meant else f"known are {', '.join(hints)}",
                problem="belongs to no known setting",
            )
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in values:
            raise InputError(
                prefix.rstrip("."), str(dict(values)), f"add `{field.name}`", problem="is not complete"
            )
    return kind(
        **{name: _coerce(value, kind=hints[name], key=f"{prefix}{name}") for name, value in values.items()}
    )


def _coerce(value: Any, *, kind: Any, key: str) -> Any:
    """`value` as the type that a field is declared with. Raises InputError where it is of another."""
    accepted = _accepted(kind)
    if value is None and types.NoneType in accepted:
        return None
    [kind] = [candidate for candidate in accepted if candidate is not types.NoneType]
    if dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            return _build(typing.cast(type, kind), value, prefix=f"{key}.")
        raise InputError(
            key, value, f"write {', '.join(typing.get_type_hints(kind))}", problem="is not a group of keys"
        )
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            item = typing.get_args(kind)[0]
            return tuple(
                _coerce(entry, kind=item, key=f"{key}[{index}]") for index, entry in enumerate(value)
            )
        raise InputError(key, value, "write it as a list in brackets", problem="is not a list")
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if any(value == choice and type(value) is type(choice) for choice in choices):  # 1 == True
            return value
        names = [str(choice) for choice in choices]
        meant = nearest(str(value), names)
        known = f"choose from {', '.join(names)}"
        raise InputError(
            key, value, f"did you mean {meant}? ({known})" if meant else known, problem="is not known"
        )
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if kind is float and not isinstance(value, bool):
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str) and re.fullmatch(r"[-+]?\.?(inf|nan)", value.lower()):
            return float(
                value.lower().replace(".", "")
            )  # YAML's own spelling is `-.inf`, everybody else's `-inf`
    problem, remedy = {
        bool: ("is not true or false", "write true or false"),
        int: ("is not a whole number", "give a whole number"),
        float: ("is not a number", "give a number"),
        str: ("is not text", "put it in quotes"),
    }[kind]
    raise InputError(key, value, remedy, problem=problem)


def _accepted(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a declared type: (int, NoneType) for `int | None`."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) or _is_optional(kind) else (kind,)


def _is_optional(kind: Any) -> bool:
    # `Literal[...] | None` is a typing.Union where `int | None` is a types.UnionType.
    return typing.get_origin(kind) is typing.Union


def _type_of(key: str) -> Any:
    kind: Any = RunConfig
    for name in key.split("."):
        kind = typing.get_type_hints(kind)[name]
    return kind
