"""A job in words: what it will do, and what users should know before they wait for it."""

from fractions import Fraction

from vinfinity.config import EditConfig, ReuseConfig, RunConfig, timed_prompts
from vinfinity.denoise.flows import FlowSchedule
from vinfinity.errors import one_line
from vinfinity.job import Job
from vinfinity.parallel.devices import fallen_back, pick_device
from vinfinity.runs.paths import Destination, check_config_audio
from vinfinity.system.numbers import shown_rate
from vinfinity.weights.dtypes import emulated

SAMPLERS_WITH_ETA = ("ddim", "videocrafter2")


def describe(job: Job) -> list[tuple[str, str]]:
    """Return what the job will do as rows of a table."""
    config, card = job.config, job.card
    channels, height, width = job.latent
    device = pick_device(config.device)
    dtype = str(job.dtype(device)).removeprefix("torch.")
    video = f"{config.frames} frames of {config.size} at {shown_rate(config.fps)} fps"
    shift = f", shift {job.schedule.shift:g}" if isinstance(job.schedule, FlowSchedule) else ""
    steps = len(job.sampler.timesteps)
    rows = [("video", video + (", a loop" if config.loop else "")), *_prompt_rows(config)]
    rows += [("latents", f"1x{channels}x{job.latent_frames}x{height}x{width}")]
    rows += [("model", f"{card.name} ({card.folder})")]
    rows += [("lora", f"{lora.path} at {lora.weight:g}, {lora.layers()}") for lora in job.loras]
    if config.decoder is not None:
        rows += [("decoder", str(job.decoder))]
    rows += [
        ("device", f"{device}, {dtype}"),
        ("sampler", f"{config.sampler}, {steps} steps, guidance {config.guidance:g}{shift}"),
        ("attention", _attention(job)),
        ("seed", str(config.seed)),
        ("output", str(Destination.of(config).video)),
    ]
    return rows + [("warning", concern) for concern in concerns(job)]


def _attention(job: Job) -> str:
    attention, geometry = job.config.attention, job.card.geometry
    if job.latent_frames <= attention.trained_frames:
        return f"plain: no more than the {geometry.frames(attention.trained_frames)} trained frames"
    unit = "frames" if geometry.time_downscale == 1 else "latent frames"
    return f"dual-scope: {attention.local} {unit} on either side, {attention.anchors} anchors"


def _prompt_rows(config: RunConfig) -> list[tuple[str, str]]:
    """Return a row for each prompt of a video that has several."""
    prompts = timed_prompts(config)
    if len(prompts) == 1:
        return []

    def change(start: int, *, cut: bool, blend: int) -> str:
        if start == 0:
            return ""
        return " (cut)" if cut else f" (blend {blend})"

    return [
        (f"frame {p.start}", f"{one_line(p.text)}{change(p.start, cut=p.cut, blend=p.blend)}")
        for p in prompts
    ]


def concerns(job: Job) -> list[str]:
    """Return what users should know before they wait: settings without effect, words the model cannot use, slow
    arithmetic.
    """
    config, device = job.config, pick_device(job.config.device)
    possible = [job.schedule.ignored_by(config.sampler), fallen_back(config.device)]
    found = [concern for concern in possible if concern]
    if emulated(job.dtype(device), device):
        found.append(_emulated_on(device.type, job))
    found += without_effect(job) + _geometry_concerns(job)
    sound, length = check_config_audio(config), Fraction(config.frames) / config.fps
    if config.audio_source is not None and sound is not None and sound < length:
        field, path = config.audio_source
        lengths = f"lasts {float(sound):.2f} s, the video {float(length):.2f} s"
        found.append(f"{field}: {path} {lengths}; the rest is silent")
    for text in job.texts:
        found += _text_concerns(job, text)
    return found


def without_effect(job: Job, group: str = "") -> list[str]:
    """Return the settings that were given but have no effect with this model or the other settings, and why.

    group: only settings whose keys begin with this.
    """
    config, traits, name = job.config, job.card.traits, job.card.name
    joint, levels = traits.denoiser.joint, traits.denoiser.levels
    edit, usual, steps = config.edit, EditConfig(), len(job.sampler.timesteps)
    # the model's own negative prompt was not given by the user
    negatives = {config.negative, *(prompt.negative for prompt in config.prompts)}
    negatives -= {None, "", job.card.defaults.get("negative")}
    rules = {
        "negative": (
            bool(negatives) and not job.guided,
            f"{name} takes guidance as an input"
            if job.card.distilled
            else f"guidance is {config.guidance:g}; raise it above 1",
        ),
        "eta": (
            config.eta > 0 and config.sampler not in SAMPLERS_WITH_ETA,
            f"only the samplers {' and '.join(SAMPLERS_WITH_ETA)} use it",
        ),
        "fps_condition": (
            config.fps_condition is not None and not traits.denoiser.takes_fps,
            f"{name} does not take a frame rate as input",
        ),
        "preview": (config.preview >= steps, f"there are only {steps} steps"),
        "parallel.split_guidance": (
            config.parallel.split_guidance and not job.guided,
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
            config.decode.frames is not None and job.card.geometry.time_downscale > 1,
            f"{name} decodes one latent frame at a time",
        ),
    }
    return [
        f"{key}: has no effect: {why}"
        for key, (given, why) in rules.items()
        if given and key.startswith(group)
    ]


def _emulated_on(device: str, job: Job) -> str:
    """Return the warning about a dtype that the device has no instructions for."""
    if device == "cuda":
        half = job.card.family.half
        better = half if half != "bf16" else "fp32"
        costs = "attention is slow there and stores the full score matrix"
        return f"dtype: this GPU has no native bf16: {costs}; use {better}"
    return f"dtype: {job.config.dtype} is at least 20 times slower than fp32 on this CPU; use fp32"


def _text_concerns(job: Job, text: str) -> list[str]:
    """Return what the model cannot use of a text: tokens beyond its length, and words it was not trained on."""
    found, tokenizer = [], job.tokenizer
    if cut := tokenizer(text).cut:
        found.append(f"the text encoder takes {tokenizer.length} tokens; cut off: {cut!r}")
    if unknown := job.card.unknown_words(text):
        known = "; ".join(f"{group}: {', '.join(words)}" for group, words in job.card.vocabulary.items())
        words = ", ".join(unknown)
        found.append(f"{job.card.name} was not trained on these words: {words}. Its vocabulary is {known}")
    return found


def _geometry_concerns(job: Job) -> list[str]:
    """Return what the model's latents cannot hold exactly."""
    config, geometry, found = job.config, job.card.geometry, []
    frames = geometry.frames(job.latent_frames)
    if frames > config.frames:
        step = geometry.time_downscale
        found.append(
            f"frames: {config.frames} is not {step}n + 1; {frames} frames are generated and the last "
            f"{frames - config.frames} dropped"
        )
    width, height = (geometry.downscale * side for side in reversed(job.latent[1:]))
    if (width, height) != config.resolution and geometry.multiple > 1:
        step = geometry.downscale * geometry.multiple
        found.append(
            f"size: {config.size} is not a multiple of {step} pixels; {width}x{height} is generated and cropped"
        )
    attention = config.attention
    attended = 2 * attention.local + 1 + attention.anchors
    if job.card.traits.denoiser.joint and job.latent_frames > attention.trained_frames != attended:
        found.append(
            f"attention: frames attend to {attended} latent frames (2 * local + 1 + anchors); "
            f"{job.card.name} was trained with {attention.trained_frames}"
        )
    return found
