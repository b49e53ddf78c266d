"""The settings of commands that continue an earlier run: resume, decode, redo, extend. Imports no torch.

All functions here take the same arguments. overrides: `KEY=VALUE` as given. flags: values of the options by setting,
None for an option that was not given. chosen: values that the command chooses for settings that neither names.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from vinfinity.config import (
    Resolved,
    RunConfig,
    changes_latents,
    declared,
    leaves,
    load,
    name_sources,
    timed_prompts,
)
from vinfinity.config.prompts import BLEND
from vinfinity.config.sources import COMMAND_LINE
from vinfinity.errors import InputError
from vinfinity.runs.files_record import is_file_setting, made_with, recorded_files
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.runs.settings import own_out, own_video, read_settings, with_absolute_paths
from vinfinity.system.folders import absolute, expanded
from vinfinity.weights.card import model_defaults

# what `vinfinity decode` uses, in addition to the settings of files and the group `decode`
DECODING_SETTINGS = ("out", "overwrite", "gpus", "device", "parallel.timeout")


def load_run(
    folder: RunFolder,
    *,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    chosen: Mapping[str, object] | None = None,
) -> Resolved:
    """Load the settings of a run, with changes that do not affect the latents. Raises InputError for other changes.

    The video lies beside the folder and takes its name, wherever the folder was moved to.
    """
    started_with = read_settings(folder)
    out, named = own_out(folder, started_with), _named(overrides)
    video = expanded(str(flags.get("out") or named.get("out") or out), field="out")
    # another video that was decoded from the run has settings of its own
    if video.name not in recorded_files(folder) or absolute(video).parent != absolute(folder.path).parent:
        video = Path(out)
    defaults = {**made_with(folder, video), "out": out, "overwrite": False, **(chosen or {})}
    resolved = load(folder.settings, chosen=defaults, overrides=overrides, flags=flags, card=model_defaults)
    new, old = (
        leaves(with_absolute_paths(config, Destination.of(config)))
        for config in (resolved.config, started_with)
    )
    for key in new:
        if new[key] != old[key] and changes_latents(key):
            with name_sources(resolved.origins):
                given = leaves(resolved.config)[key]
                raise InputError(key, given, "start a new run for it", problem="would change the video")
    return resolved


def check_decoded_with(resolved: Resolved) -> None:
    """Raise InputError if the command names a setting that decoding does not use."""
    for key, value in leaves(resolved.config).items():
        used = is_file_setting(key) or key in DECODING_SETTINGS or key.startswith("decode.")
        if resolved.origins[key] == COMMAND_LINE and not used and not changes_latents(key):
            raise InputError(key, value, "remove it", problem="has no effect on decoding")


def resume_settings(
    folder: RunFolder,
    *,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    chosen: Mapping[str, object] | None = None,
) -> Resolved:
    """Load the settings with which a run is resumed, see `load_run`. Raises InputError if they would start another."""
    resolved = load_run(folder, overrides=overrides, flags=flags, chosen={"resume": True, **(chosen or {})})
    config, video = resolved.config, own_video(folder)
    with name_sources(resolved.origins):
        if not config.resume:
            raise InputError("resume", False, "remove it", problem="would start the run over")
        if absolute(Destination.of(config).video) != absolute(video):
            remedy = "remove it; `vinfinity decode` makes another video of a finished run"
            raise InputError("out", config.out, remedy, problem="is not the video of this run")
    return resolved


def redo_settings(
    folder: RunFolder,
    span: str,
    *,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    chosen: Mapping[str, object] | None = None,
) -> Resolved:
    """Load the settings of a video that regenerates a span of an earlier one and keeps its other frames.

    span: `FROM:TO`, as in `edit.redo`. By default, the video is named NAME-redo and has the next seed. A run from a
    video keeps that video. Raises InputError.
    """
    before = read_settings(folder)
    defaults = _edit_defaults(folder, before, "redo") | {"seed": (before.seed + 1) % 2**63}
    if not before.starts_from_video:
        defaults |= _without_input(before)
    flags = {**flags, "edit.redo": span}
    return _load_edit(folder, before, defaults | dict(chosen or {}), _redone_prompts, overrides, flags)


def extend_settings(
    folder: RunFolder,
    added: int,
    *,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    chosen: Mapping[str, object] | None = None,
) -> Resolved:
    """Load the settings of a video that appends `added` frames to an earlier one.

    By default, the video is named NAME-extend and has the same seed. Raises InputError.
    """
    before = read_settings(folder)
    defaults = _edit_defaults(folder, before, "extend") | _without_input(before)
    prompts = partial(_extended_prompts, added=added)
    flags = {**flags, "frames": before.frames + added}
    return _load_edit(folder, before, defaults | dict(chosen or {}), prompts, overrides, flags)


def _load_edit(
    folder: RunFolder,
    before: RunConfig,
    chosen: dict[str, object],
    edit_prompts: Callable[[RunConfig, str | None], dict[str, object]],
    overrides: Sequence[str],
    flags: Mapping[str, object],
) -> Resolved:
    """Load the settings of an edit. edit_prompts: makes its prompts, from the text of the new frames, if any.

    It is called if the earlier video has prompts over time, unless the command names others.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    named = _named(overrides)
    for key in ("frames", "edit.redo"):
        if key in named and key in given:
            problem = "conflicts with --frames"
            raise InputError(key, named[key], "remove it", problem=problem, source=COMMAND_LINE)
    if before.prompts and "prompts" not in named:
        text = given.pop("prompt", named.get("prompt"))
        chosen = edit_prompts(before, None if text is None else str(text)) | chosen
        overrides = [override for override in overrides if not override.startswith("prompt=")]
    return load(folder.settings, chosen=chosen, overrides=overrides, flags=given, card=model_defaults)


def _named(overrides: Sequence[str]) -> dict[str, str]:
    """Return the text of each setting that `KEY=VALUE` arguments name."""
    return {key: text for key, _, text in (override.partition("=") for override in overrides)}


def _edit_defaults(folder: RunFolder, before: RunConfig, suffix: str) -> dict[str, object]:
    """Return the settings in which any edit differs from the earlier run. suffix: ends the name of the new video."""
    return {
        "resume": False,
        "overwrite": False,
        "out": _edited_video(own_out(folder, before), suffix),
        "save_latents": None,
        "noise_from": None,
        "edit.run": str(folder.path.absolute()),
        "edit.redo": None,
        # new frames follow no picture of the earlier run, unless the command names one
        "input.first_frame": None,
        "input.last_frame": None,
    }


def _without_input(before: RunConfig) -> dict[str, object]:
    """Return settings for new frames that start from no video, whether or not the earlier run did."""
    settings: dict[str, object] = {
        "input.video": None,
        "input.strength": None,
        "input.fit": None,
        "input.keep_audio": False,
    }
    settings |= {key: None for key in declared() if key.startswith("first_pass.")}
    # the source's audio plays on where the video is longer
    return settings | ({"audio": before.input.video} if before.input.keep_audio else {})


def _edited_video(out: str, suffix: str) -> str:
    """Return the name of an edit's video, beside that of the earlier run."""
    if out.endswith("/"):
        return f"{out[:-1]}-{suffix}/"
    return str(Path(out).with_stem(f"{Path(out).stem}-{suffix}"))


def _redone_prompts(before: RunConfig, text: str | None) -> dict[str, object]:
    """Return the prompts of a redo: those of the earlier video, or `text` for all frames."""
    return (
        {"prompt": "", "prompts": _prompts_in_frames(before)}
        if text is None
        else {"prompt": text, "prompts": []}
    )


def _extended_prompts(before: RunConfig, text: str | None, *, added: int) -> dict[str, object]:
    """Return the prompts of a video with `added` frames: those of the earlier video, then `text` if given."""
    prompts = _prompts_in_frames(before)
    if text is not None:
        last = timed_prompts(before)[-1]
        # 0 at the beginning: what can be extended is not a loop
        prompts[0]["blend"] = 0
        room = min(before.frames - last.start, 2 * (before.frames - last.window[1]), added)
        prompts.append({"at": before.frames, "text": text, "blend": int(min(BLEND, room))})
    return {"prompt": "", "prompts": prompts}


def _prompts_in_frames(before: RunConfig) -> list[dict[str, object]]:
    """Return the prompts of a video by frame: percentages would shift in a longer video."""
    negatives = [None] * bool(before.prompt) + [prompt.negative for prompt in before.prompts]
    return [
        {"at": p.start, "text": p.text, "negative": negative, "blend": p.blend, "cut": p.cut}
        for p, negative in zip(timed_prompts(before), negatives, strict=True)
    ]
