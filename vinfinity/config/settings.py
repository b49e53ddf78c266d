"""Every setting of a run, declared once, in the order of `--help` and `vinfinity config`."""

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import PurePath
from typing import Literal

from vinfinity.config.formats import (
    ENDINGS,
    PixelFormat,
    Preset,
    VideoFormat,
    check_ending,
    check_holds_audio,
    check_rate,
    choose_format,
)
from vinfinity.config.prompts import Prompt, TimedPrompt, time_prompts
from vinfinity.config.schema import Declared, Group, declarations, from_model, setting
from vinfinity.errors import InputError
from vinfinity.system.rank_count import check_rank_count

Sampler = Literal["ddim", "dpmsolver++", "sde-dpmsolver++", "videocrafter2", "lcm", "unipc", "euler"]
Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "fp32", "fp16", "bf16"]
Memory = Literal["auto", "low", "fast"]
CodecName = Literal["h264", "h265", "av1", "vp9", "prores"]
BitDepth = Literal[8, 10, 16]
Fit = Literal["cover", "contain", "stretch"]

# in pixels; no level of H.264 has longer sides
SMALLEST_SIDE, LARGEST_SIDE = 16, 8192
# strength of runs from a video, as in diffusers
DEFAULT_STRENGTH = 0.6
# with larger shifts, the first noise levels of a thousand steps are equal in fp32
LARGEST_SHIFT = 100
# the panels of `--help`
VIDEO, INPUT, SAMPLING = "The video", "Source video or images", "Sampling"
FILES, MACHINE = "Files", "The machine"


def parse_size(text: str) -> tuple[int, int]:
    """Parse a size such as `512x320` as (width, height) in pixels. Raises InputError."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if match is None:
        remedy = "write it as WIDTHxHEIGHT, such as 512x320"
        raise InputError("size", text, remedy, problem="is not a size in pixels")
    width, height = int(match[1]), int(match[2])
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in (width, height)):
        remedy = f"use sides of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
        raise InputError("size", text, remedy, problem="is out of range")
    return width, height


def parse_interval(text: str) -> tuple[Literal["steps", "seconds", "auto", "never"], float]:
    """Parse a checkpoint interval as a unit and an amount, 0 for `auto` and `never`. Raises InputError."""
    if text in ("auto", "never"):
        return typing.cast(Literal["auto", "never"], text), 0
    match = re.fullmatch(r"([1-9][0-9]{0,5}) ?(steps?|s|min|h)", text)
    if match is None:
        remedy = "write a number of steps, s, min or h, such as 10min; or use auto or never"
        raise InputError("checkpoint.every", text, remedy, problem="is not an interval")
    if match[2].startswith("step"):
        return "steps", int(match[1])
    return "seconds", int(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]]


def parse_span(text: str) -> range:
    """Parse a span such as `40:60`, which excludes frame 60. Raises InputError."""
    match = re.fullmatch(r"(0|[1-9][0-9]{0,8}):([1-9][0-9]{0,8})", text)
    span = None if match is None else range(int(match[1]), int(match[2]))
    if not span:
        problem = "is not a range of frames" if span is None else "is an empty range"
        raise InputError("edit.redo", text, "write it as FROM:TO, such as 40:60", problem=problem)
    return span


def check_suffix(field: str, path: str, suffix: str) -> None:
    """Raise InputError if the name of a file does not end in `suffix`, such as `.mp4`, in upper or lower case."""
    name = PurePath(path).name
    if PurePath(name).suffix.lower() != suffix:
        stem = name.strip(" .")
        stem = stem if stem.lower().endswith(suffix) else f"{PurePath(stem).stem or 'video'}{suffix}"
        raise InputError(field, path, f"rename it to {stem}", problem=f"does not end in {suffix}")


def _check_first_size(text: str) -> None:
    try:
        parse_size(text)
    except InputError as error:
        raise error.about("first_pass.size") from None


def _check_out(path: str) -> None:
    check_ending("out", path)


def _check_latents(path: str) -> None:
    check_suffix("save_latents", path, ".safetensors")


def _check_noise(path: str) -> None:
    check_suffix("noise_from", path, ".safetensors")


def _check_model(name: str) -> None:
    if not name.strip():
        raise InputError("model", name, "use the name or folder of a model, such as mini", problem="is blank")


@dataclass(frozen=True)
class Phase:
    """The biases of the two scopes while the denoising timestep is above `above`.

    local, anchors: what attention adds to the logits of each scope; -inf disables the scope.
    """

    above: int
    local: float
    anchors: float


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Group, name="attention"):
    """Dual-scope attention, for videos longer than the model's training clips (arXiv 2406.16260). In models that
    compress time, such as Wan, frames are latent frames. Wan has other defaults: 4, 12, no biases, moving anchors.
    """

    local: int = setting(
        8,
        "Local scope: number of frames on either side that a frame attends to.",
        least=0,
        remedy="0 means the frame alone, 8 is the default",
    )
    anchors: int = setting(
        16,
        "Number of anchors: frames spread evenly over the video that every frame attends to.",
        least=0,
        remedy="0 means none, 16 is the default",
    )
    schedule: tuple[Phase, ...] = setting(
        (Phase(above=800, local=0.0, anchors=10.0), Phase(above=-1, local=10.0, anchors=0.0)),
        "Biases added to the logits of the two scopes, by denoising timestep: a phase applies while the timestep is "
        "above `above`. -inf disables a scope.",
        form="phases in descending order, the last with above: -1",
    )
    moving_anchors: bool = setting(
        False,
        "Move the anchors by one frame in each denoising step, so that no frames are special. They do not move in a "
        "redo or extend.",
    )
    positions: Literal["auto", "absolute", "grouped"] = setting(
        "auto",
        "Temporal distances in models with rotary positions (Wan): the true ones (absolute), or none longer than in "
        "training (grouped); auto groups them in videos of more than six times the trained length.",
    )
    entropy_scaling: bool = setting(False, "Scale logits by log(attended frames) / log(trained frames).")
    norm: Literal["video", "rank"] = setting(
        "video", "Frames that share the statistics of temporal GroupNorms: the whole video's, or one rank's."
    )
    trained_frames: int = from_model(
        "Length of the model's training clips, in frames. Videos up to this length use plain attention.",
        least=1,
        remedy="use the length of the model's training clips, often 16",
    )

    def phase(self, t: float) -> Phase:
        """Return the phase at denoising timestep `t` (>= 0): the first whose `above` is below it."""
        return next(phase for phase in self.schedule if phase.above < t)

    def check(self) -> None:
        key = "attention.schedule"
        above = [phase.above for phase in self.schedule]
        shown = "[" + ", ".join(f"above {timestep}" for timestep in above) + "]"
        if not above or above[-1] != -1:
            remedy = "end it with a phase `above: -1`, which covers timestep 0"
            raise InputError(key, shown, remedy, problem="does not reach the last timestep")
        if not all(first > second for first, second in pairwise(above)):
            remedy = "list the phases from the first, noisy timesteps (high `above`) to the last"
            raise InputError(key, shown, remedy, problem="is not in descending order")
        for index, phase in enumerate(self.schedule):
            for scope, bias in (("local", phase.local), ("anchors", phase.anchors)):
                if math.isnan(bias) or bias == math.inf:
                    remedy = "use a finite number, or -inf to disable the scope"
                    raise InputError(f"{key}[{index}].{scope}", bias, remedy, problem="is not a bias")
            if phase.local == -math.inf and (phase.anchors == -math.inf or self.anchors == 0):
                biases = f"local {phase.local}, anchors {phase.anchors}"
                raise InputError(
                    f"{key}[{index}]",
                    f"{biases} with attention.anchors {self.anchors}",
                    "keep one scope finite, and at least one anchor where local is -inf",
                    problem="leaves frames with nothing to attend to",
                )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Group, name="parallel", latents=False):
    """How ranks work together."""

    timeout: float = setting(
        120.0,
        "Time without an answer after which a rank counts as lost, in seconds.",
        above=0,
        most=1_000_000,
        remedy="120 is the default",
    )
    split_guidance: bool = setting(False, "Compute each guidance branch on its own half of the ranks.")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Group, name="checkpoint", latents=False):
    """What a run saves while it denoises, so that it can be resumed."""

    every: str = setting(
        "auto",
        "Interval between checkpoints; auto spends less than 2 % of the time on writing them.",
        form="such as 5 steps, 90s, 10min or 1h; auto or never",
        check=parse_interval,
    )
    keep: int = setting(
        2,
        "Number of checkpoints to keep, newest first.",
        least=1,
        remedy="2 is the default: if the newest is damaged, the one before it is used",
    )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Group, name="compute", latents=False):
    """Details of a network call, chosen by `memory` if not set. The video stays the same, up to rounding."""

    branches: Literal[1, 2] | None = setting(
        None, "Number of guidance branches in one network call.", unset="chosen by memory"
    )
    skips: Literal["device", "host"] | None = setting(
        None, "Memory that holds skip connections until the up path needs them.", unset="chosen by memory"
    )
    chunk: int | None = setting(
        None,
        "Size of the chunks in which a layer processes hidden states, in MiB; limits temporary memory.",
        least=1,
        # upsampled, a larger chunk in 16 bits would have more elements than kernels can index
        most=512,
        remedy="4 suits a CPU, 256 a GPU; null leaves it to `memory`",
        unset="chosen by memory",
    )


@dataclass(frozen=True, kw_only=True)
class ReuseConfig(Group, name="reuse"):
    """Reuse of deep UNet features over several steps (DeepCache, arXiv 2312.00858): faster, with a different result."""

    interval: int = setting(
        1,
        "Run the full UNet every N steps; the other steps reuse its deep features.",
        least=1,
        most=1000,
        remedy="1 disables reuse; 2 or 3 is typical",
    )
    depth: int = setting(
        1,
        "Number of UNet levels that run in every step, counted from the outermost.",
        least=1,
        remedy="1 reuses all but the outermost level",
    )


@dataclass(frozen=True, kw_only=True)
class EditConfig(Group, name="edit"):
    """The finished run that an edit starts from. `vinfinity redo` and `vinfinity extend` set these."""

    run: str | None = setting(None, "Folder NAME.run of the finished run whose frames are kept.")
    redo: str | None = setting(
        None,
        "Frames of that run to regenerate, excluding frame TO.",
        form="FROM:TO",
        check=parse_span,
        flag="--frames",
        command="redo",
    )
    blend: int = setting(
        4,
        "Number of regenerated frames at each end that blend into the kept frames.",
        least=0,
        remedy="0 disables blending, 4 is the default",
    )
    context: int = setting(
        16,
        "Number of kept frames on either side that are computed together with the new frames so that they match.",
        least=1,
        remedy="16 is the default; larger values are slower and hardly better",
    )

    @property
    def span(self) -> range:
        """The frames to regenerate."""
        return range(0) if self.redo is None else parse_span(self.redo)

    def check(self) -> None:
        if self.redo is not None and self.run is None:
            remedy = "use `vinfinity redo RUN --frames FROM:TO`"
            raise InputError("edit.redo", self.redo, remedy, problem="needs a run to edit")


@dataclass(frozen=True, kw_only=True)
class InputConfig(Group, name="input"):
    """The source video, or images of the first and the last frame."""

    video: str | None = setting(
        None,
        "Source video; the prompt describes the result. Frames, size and fps default to the source's.",
        panel=INPUT,
        flag="--from",
        metavar="FILE",
    )
    strength: float | None = setting(
        None,
        "How much the source may change, as the fraction of denoising steps that run.",
        above=0,
        most=1,
        remedy="0.6 is the default; 1 keeps little more than the layout",
        unset="0.6",
        panel=INPUT,
        flag="--strength",
    )
    fit: Fit | None = setting(
        None,
        "How to fit a source with another aspect ratio: cover crops it, contain adds black bars, stretch distorts it.",
        unset="cover for videos; required for images with another aspect ratio",
        panel=INPUT,
        flag="--fit",
    )
    first_frame: str | None = setting(
        None, "Image to use as the first frame.", panel=INPUT, flag="--first-frame", metavar="IMAGE"
    )
    last_frame: str | None = setting(
        None, "Image to use as the last frame.", panel=INPUT, flag="--last-frame", metavar="IMAGE"
    )
    keep_audio: bool = setting(
        False,
        "Keep the source's audio, trimmed or padded with silence to fit.",
        latents=False,
        panel=INPUT,
        flag="--keep-audio",
    )

    @property
    def effective_strength(self) -> float:
        """The strength of a run from a video: the setting or its default."""
        return DEFAULT_STRENGTH if self.strength is None else self.strength

    @property
    def pictures(self) -> Mapping[str, str]:
        """Setting -> path of the images that are given, in the order of their frames."""
        named = {"input.first_frame": self.first_frame, "input.last_frame": self.last_frame}
        return {key: path for key, path in named.items() if path is not None}

    def check(self) -> None:
        if self.keep_audio and self.video is None:
            raise InputError("input.keep_audio", True, "add --from VIDEO", problem="has no source video")


@dataclass(frozen=True, kw_only=True)
class FirstPassConfig(Group, name="first_pass"):
    """A first pass generates the video at another, often smaller size; the final video then starts from its result.
    There is no first pass with `input.video`.
    """

    size: str | None = setting(
        None,
        "Width and height of the first pass, in pixels. If set, the video is generated in two passes; "
        "`input.strength` applies to the second.",
        form=f"WIDTHxHEIGHT, each {SMALLEST_SIDE} to {LARGEST_SIDE}",
        check=_check_first_size,
        unset="a single pass",
    )
    model: str | None = setting(None, "Model of the first pass.", unset="the video's")
    lora: tuple[str, ...] | None = setting(
        None,
        "LoRAs of the first pass.",
        form="FILE or FILE:WEIGHT each",
        unset="the video's, or none with another model",
    )
    steps: int | None = setting(
        None,
        "Number of denoising steps of the first pass.",
        least=1,
        most=1000,
        remedy="30 to 50 is typical",
        unset="the video's, or the default of another model",
    )
    sampler: Sampler | None = setting(
        None, "Sampling algorithm of the first pass.", unset="the video's, or the default of another model"
    )
    guidance: float | None = setting(
        None,
        "Guidance scale of the first pass.",
        least=1,
        remedy="1 disables guidance; 7 to 12 is typical",
        unset="the video's, or the default of another model",
    )
    shift: float | None = setting(
        None,
        "Timestep shift of the first pass.",
        least=1,
        most=LARGEST_SHIFT,
        remedy="3 or 5 is typical",
        unset="the video's, or the default of another model",
    )

    def check(self) -> None:
        for name, value in vars(self).items():
            if value is not None and self.size is None:
                problem = "has no effect without a first pass"
                raise InputError(
                    f"first_pass.{name}", value, "add first_pass.size=WIDTHxHEIGHT", problem=problem
                )


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(Group, name="decode", latents=False):
    """Decoding: from latents to frames."""

    where: Literal["rank0", "ranks"] | None = setting(
        None,
        "Ranks that decode: rank 0, or all ranks. The file is the same.",
        unset="ranks on GPUs, rank0 on the CPU",
    )
    frames: int | None = setting(
        None,
        "Number of frames to decode at once. Has no effect on Wan, which decodes one latent frame at a time.",
        least=1,
        remedy="use a number of frames, or null to choose it by their size",
        unset="as many as fit into 512 MiB, at most 8",
    )
    tile: int | None = setting(
        None,
        "Side of the tiles in which frames are decoded, in pixels; a multiple of 32, or of 64 with mini.",
        least=32,
        most=LARGEST_SIDE,
        remedy="512 is typical; null decodes whole frames",
        unset="whole frames",
    )

    def on_all_ranks(self, device: str) -> bool:
        """Return whether all ranks decode: by default not on a CPU, whose cores they share. device: their type."""
        return device != "cpu" if self.where is None else self.where == "ranks"


@dataclass(frozen=True, kw_only=True)
class VideoConfig(Group, name="video", latents=False):
    """The video file and the files next to it. The ending of `out` determines the format."""

    codec: CodecName | None = setting(
        None,
        "Codec: h264, h265 or av1 in .mp4; prores, h264 or h265 in .mov; vp9 or av1 in .webm.",
        unset="the first of those for the file",
    )
    bit_depth: BitDepth | None = setting(
        None,
        "Bits per sample: 8 or 10 with h265 and av1, 10 with prores, 8 or 16 in PNG.",
        unset="10 with prores, else 8",
    )
    crf: int | None = setting(
        None,
        "Constant rate factor of the codec: lower is better and larger. h264 and h265 take 0 to 51, vp9 0 to 63, av1 "
        "1 to 63.",
        least=0,
        most=63,
        remedy="remove it for a visually lossless video",
        unset="visually lossless: 18 for h264, 20 for h265, 24 for av1 and vp9",
    )
    preset: Preset | None = setting(
        None,
        "Encoder preset, named as in x264; slower presets give smaller files. Not used by prores.",
        unset="medium",
    )
    pixel_format: PixelFormat | None = setting(
        None,
        "Pixel format: yuv420p plays everywhere, yuv444p keeps the full colour resolution. av1 has yuv420p only.",
        unset="yuv420p, or yuv422p with prores",
    )
    quality: int | None = setting(
        None,
        "Quality of WebP, from 0 to 100.",
        least=0,
        most=100,
        remedy="90 is the default; 75 gives much smaller files",
        unset="90",
    )
    repeat: bool | None = setting(
        None,
        "Loop GIF and WebP output forever; false plays it once.",
        unset="true",
    )
    metadata: bool = setting(True, "Store the prompt, the seed and the settings in the video.")
    sheet: bool = setting(True, "Write a contact sheet next to the video: a PNG of evenly spaced frames.")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Group):
    """The configuration of one video: every setting with its value.

    `load_config` takes missing values from the model and the defaults. Without it, the settings in which models differ
    are required: size, fps, steps, sampler, guidance, and attention with its trained_frames. Raises InputError if a
    value has another type or is out of range.
    """

    prompt: str = setting("", "Text that describes the video.", panel=VIDEO, short="-p")
    negative: str = setting(
        "",
        "Text that describes what the video should not show.",
        unset="the model's",
        from_model=True,
        panel=VIDEO,
    )
    prompts: tuple[Prompt, ...] = setting(
        (),
        "Prompts that follow `prompt`, each with its start: a frame (96), a time (12s) or a percentage (50%). Both "
        "texts guide the frames around a change. In YAML, `blend` sets their number, and `cut: true` begins a new "
        "scene instead.",
        form="in order of their start",
        panel=VIDEO,
        flag="--then",
        metavar="AT TEXT",
    )
    loop: bool = setting(False, "Make the last frame lead into the first.", panel=VIDEO)
    frames: int = setting(
        96,
        "Length of the video, in frames.",
        least=1,
        remedy="use at least 1",
        panel=VIDEO,
        short="-n",
    )
    size: str = from_model(
        "Width and height of the video, in pixels.",
        form=f"WIDTHxHEIGHT, each {SMALLEST_SIDE} to {LARGEST_SIDE}",
        check=parse_size,
        panel=VIDEO,
        metavar="WxH",
    )
    fps: Fraction | int = from_model(
        "Playback speed in frames per second, such as 24, 23.976 or 30000/1001; also passed to models that take a "
        "frame rate as input.",
        least=1,
        most=240,
        remedy="24 is the frame rate of cinema",
        panel=VIDEO,
    )
    fps_condition: int | None = setting(
        None,
        "Frame rate to pass to the model as input, in frames per second.",
        least=1,
        most=240,
        remedy="use the frame rate of the model's training clips, or null",
        unset="the value of fps",
    )
    model: str = setting(
        "mini",
        "Model: the embedded one (mini), a folder in diffusers layout, or the name of a published model.",
        check=_check_model,
        panel=VIDEO,
        metavar="mini|FOLDER|NAME",
    )
    lora: tuple[str, ...] = setting(
        (),
        "LoRA, LoHa or LoKr: a file or a PEFT folder, with its weight if not 1. May be repeated.",
        form="FILE or FILE:WEIGHT each",
        panel=VIDEO,
        metavar="FILE[:WEIGHT]",
    )
    decoder: str | None = setting(
        None,
        "Folder of another autoencoder for the model's latents, such as TAESD.",
        unset="the model's",
        latents=False,
        panel=VIDEO,
        metavar="FOLDER",
    )
    seed: int = setting(
        0,
        "Seed of the noise; a seed gives the same noise on every machine.",
        least=0,
        most=2**63 - 1,
        remedy="use another number",
        panel=SAMPLING,
    )
    steps: int = from_model(
        "Number of denoising steps.", least=1, most=1000, remedy="30 to 50 is typical", panel=SAMPLING
    )
    sampler: Sampler = from_model("Sampling algorithm.", panel=SAMPLING)
    guidance: float = from_model(
        "Guidance scale, the weight of the prompt; 1 disables guidance.",
        least=1,
        remedy="1 disables guidance; 7 to 12 is typical",
        panel=SAMPLING,
    )
    eta: float = setting(
        0.0,
        "Noise that the samplers ddim and videocrafter2 add in each step: 0 is none, 1 as much as DDPM.",
        least=0,
        most=1,
        remedy="0 adds no noise, 1 as much as DDPM",
    )
    shift: float | None = setting(
        None,
        "Timestep shift of flow-matching models such as Wan: larger values spend more steps at high noise; 1 is no "
        "shift.",
        least=1,
        most=LARGEST_SHIFT,
        remedy="3 or 5 is typical",
        unset="the model's",
    )
    noise_from: str | None = setting(
        None,
        "File to read the initial noise from, as tensor `noise` (1, channels, frames, height, width).",
        check=_check_noise,
        unset="drawn from the seed",
        panel=SAMPLING,
        metavar="FILE.safetensors",
    )
    out: str | None = setting(
        None,
        "Path of the video; its ending determines the format.",
        check=_check_out,
        form=f"ends in {ENDINGS}",
        unset="named after the prompt, .mp4",
        latents=False,
        panel=FILES,
        short="-o",
        metavar="FILE.mp4",
    )
    audio: str | None = setting(
        None,
        "Audio file for the video, trimmed or padded with silence to fit.",
        latents=False,
        panel=FILES,
        metavar="FILE",
    )
    overwrite: bool = setting(False, "Replace existing files.", latents=False, panel=FILES)
    resume: bool = setting(False, "Resume the run of this video if there is one.", latents=False, panel=FILES)
    save_latents: str | None = setting(
        None,
        "File to save the final latents to, as tensor `latents` (1, channels, frames, height, width).",
        check=_check_latents,
        latents=False,
        panel=FILES,
        metavar="FILE.safetensors",
    )
    preview: int = setting(
        0,
        "Write a preview (animation and contact sheet, in the run folder) every N steps; 0 disables previews.",
        least=0,
        remedy="5 writes one every five steps; 0 disables previews",
        latents=False,
        panel=FILES,
        metavar="STEPS",
    )
    gpus: int | None = setting(
        None,
        "Number of GPUs, or processes on a CPU, that share the video.",
        least=1,
        remedy="use at least 1, or remove it",
        unset="1, or the ranks of the launcher",
        latents=False,
        panel=MACHINE,
    )
    device: Device = setting(
        "auto", "Device to compute on; auto uses GPUs if there are any.", latents=False, panel=MACHINE
    )
    dtype: Dtype = setting(
        "auto",
        "Precision of the network; auto is fp16 on a GPU (bf16 for Wan) and fp32 on a CPU.",
        panel=MACHINE,
    )
    memory: Memory = setting(
        "auto", "Memory budget; auto picks the fastest mode that fits.", latents=False, panel=MACHINE
    )
    compile: bool = setting(
        False,
        "Compile the network: takes minutes at the start, then steps are faster.",
        latents=False,
        panel=MACHINE,
    )
    attention: AttentionConfig
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    compute: ComputeConfig = ComputeConfig()
    reuse: ReuseConfig = ReuseConfig()
    input: InputConfig = InputConfig()
    first_pass: FirstPassConfig = FirstPassConfig()
    edit: EditConfig = EditConfig()
    decode: DecodeConfig = DecodeConfig()
    video: VideoConfig = VideoConfig()

    @property
    def resolution(self) -> tuple[int, int]:
        """(width, height) of the video in pixels."""
        return parse_size(self.size)

    @property
    def first_text(self) -> str:
        """The text that the video begins with."""
        return self.prompts[0].text if self.prompts and not self.prompt else self.prompt

    @property
    def two_passes(self) -> bool:
        """Whether the video starts from the result of a first pass."""
        return self.first_pass.size is not None and self.input.video is None

    @property
    def starts_from_video(self) -> bool:
        """Whether the video starts from another video: a file, or the result of a first pass."""
        return self.input.video is not None or self.two_passes

    @property
    def encodes(self) -> bool:
        """Whether anything must be encoded before denoising: a source video, or images."""
        return self.starts_from_video or bool(self.input.pictures)

    @property
    def audio_source(self) -> tuple[str, str] | None:
        """The setting that names the file with the video's audio, and its path; None for a silent video."""
        if self.audio is not None:
            return "audio", self.audio
        if self.input.keep_audio and self.input.video is not None:
            return "input.keep_audio", self.input.video
        return None

    @property
    def format(self) -> VideoFormat:
        """The format of the video, by the ending of `out` and `video`."""
        return choose_format(self.out, self.video)

    def check(self) -> None:
        if self.prompt and not self.prompt.strip():
            raise InputError("prompt", self.prompt, "describe the video", problem="is blank")
        timed_prompts(self)
        video = self.format
        check_rate(video, self.fps)
        if self.audio_source is not None:
            field, path = self.audio_source
            check_holds_audio(video, path, field=field)
        self._check_input()
        if self.frames == 1 and len(self.input.pictures) == 2:
            problem = "cannot match two pictures"
            raise InputError("frames", self.frames, "use at least 2", problem=problem)
        if self.gpus is not None:
            check_rank_count(self.gpus, self.frames)

    def _check_input(self) -> None:
        """Raise InputError if settings of `input` have nothing to apply to."""
        start = self.input
        if start.strength is not None and not self.starts_from_video:
            problem = "has no source video"
            raise InputError("input.strength", start.strength, "add --from VIDEO", problem=problem)
        if start.fit is not None and not self.starts_from_video and not start.pictures:
            remedy = "add --from, --first-frame or --last-frame"
            raise InputError("input.fit", start.fit, remedy, problem="has nothing to fit")
        if start.keep_audio and self.audio is not None:
            problem = "conflicts with input.keep_audio"
            raise InputError("audio", self.audio, "remove one of the two", problem=problem)


@cache
def declared() -> Mapping[str, Declared]:
    """Dotted key -> declaration, of all settings in order."""
    return declarations(RunConfig)


def require_prompt(config: RunConfig) -> None:
    """Raise InputError if the configuration has no prompt."""
    if not config.prompt and not config.prompts:
        raise InputError("prompt", "none given", 'describe the video, as in --prompt "a red ball"')


def timed_prompts(config: RunConfig) -> tuple[TimedPrompt, ...]:
    """Return the prompts of a video in order, with times as frames. Raises InputError if they do not fit into it."""
    return time_prompts(
        config.prompt,
        config.prompts,
        negative=config.negative,
        frames=config.frames,
        fps=config.fps,
        loop=config.loop,
    )
