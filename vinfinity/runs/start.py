"""Whether a run starts, resumes or is done. Imports no torch: it is decided before torch is loaded."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vinfinity.config import (
    Resolved,
    RunConfig,
    VideoConfig,
    changes_latents,
    choose_format,
    declared,
    digest,
    leaves,
    load,
    name_sources,
    plain_text,
    timed_prompts,
)
from vinfinity.config.formats import container_of
from vinfinity.config.prompts import BLEND
from vinfinity.config.sources import COMMAND_LINE
from vinfinity.errors import InputError
from vinfinity.runs.folder import RunFolder, video_of
from vinfinity.runs.paths import Destination, check_emptied, check_files, sheet_of
from vinfinity.runs.sources import check_sources
from vinfinity.system.folders import absolute, expanded
from vinfinity.weights.card import find_model, model_defaults

Start = Literal["new", "resume", "done"]

# set by launchers that start a job or its ranks again
RESTARTS = {"torchrun": "TORCHELASTIC_RESTART_COUNT", "SLURM": "SLURM_RESTART_COUNT"}
# settings of a video's files, beside those of the group `video`
FILES = ("decoder", "audio", "save_latents")
OF_FILES = (*FILES, "input.keep_audio")
# what `vinfinity decode` reads, beside those and the groups `video` and `decode`
OF_DECODING = ("out", "overwrite", "gpus", "device", "parallel.timeout")


class OtherRunError(InputError):
    """The folder of a video holds a run of other settings, weights or noise, which `resume` does not continue."""


def settle_start(
    config: RunConfig, destination: Destination, *, replaces: bool = True
) -> tuple[RunConfig, Start]:
    """How `config` starts, see `how_to_start`. With `overwrite`, another run in place of the one to resume is replaced.
    If a launcher has restarted this process, it resumes.

    replaces: whether it may be; for `vinfinity resume`, `overwrite` concerns files alone. Raises InputError.
    """
    if was_restarted(os.environ):
        config = dataclasses.replace(config, resume=True)
    try:
        return config, how_to_start(config, destination)
    except OtherRunError:
        if not (config.resume and config.overwrite and replaces):
            raise
    config = dataclasses.replace(config, resume=False)
    return config, how_to_start(config, destination)


def how_to_start(config: RunConfig, destination: Destination) -> Start:
    """Whether `config` starts a new run, resumes one, or names one that is done. Raises InputError where it is refused.

    The run folder holds           by default   overwrite   resume    both
    no run                         new          new         new       new
    the run of another video       refused      refused     refused   refused
    a run of the same settings     refused      new         goes on   goes on
    a run of other settings        refused      new         refused   new, see `settle_start`

    By default, a new run takes the place of one that has computed nothing. A run goes on with its next step. It is done
    if it is finished and its video is there; with `overwrite`, only if its files were made with the same settings. It
    also goes on for a video that `decode` has made from it.

    A run that goes on may replace files that it was started for or has made, a new one none; with `overwrite`, any.
    """
    folder, record = destination.folder, destination.folder.record()
    if record is not None:
        _check_owner(config, destination, record)
        if config.resume:
            return _how_to_go_on(config, destination, record)
    check_files(config, destination, overwrite=config.overwrite)
    check_emptied(destination)
    finished = record is not None and record.get("finished")
    if (finished or folder.holds_work()) and not config.overwrite:
        resume = "" if record is None else f"{folder.command('resume')} resumes it, "
        problem = f"belongs to {'a finished' if finished else 'an unfinished'} run"
        raise InputError("out", destination.video, f"{resume}--overwrite starts over", problem=problem)
    check_sources(config)
    return "new"


def _check_owner(config: RunConfig, destination: Destination, record: Mapping[str, Any]) -> None:
    """Raise InputError if the folder holds the run of another video: formats share it, as ball.mp4 and ball.gif do."""
    folder, name = destination.folder, destination.video.name
    owner = Path(video_of(folder, record.get("config", {}).get("out") or ".mp4")).name
    if name == owner or (config.resume and name in _recorded_files(folder)):
        return
    problem = f"needs the folder {folder.path}, which holds the run of {owner}"
    remedy = "choose another name, or delete the folder; `vinfinity decode` makes other formats of a finished video"
    raise InputError("out", destination.video, remedy, problem=problem)


def check_decoded_beside(folder: RunFolder, destination: Destination) -> None:
    """Raise InputError if a video that is decoded from the run in `folder` would count as that of another run."""
    beside = destination.folder
    if os.path.realpath(beside.path) != os.path.realpath(folder.path) and beside.record() is not None:
        problem = f"belongs to the folder {beside.path}, which holds another run"
        raise InputError("out", destination.video, "choose another name", problem=problem)


def _how_to_go_on(config: RunConfig, destination: Destination, record: Mapping[str, Any]) -> Start:
    """Whether the run of a video resumes or is done. Raises OtherRunError if it has other settings."""
    folder = destination.folder
    started_with = read_settings(folder)
    # those of older versions are absolute, and may have links or `..` in them
    absolute_before = with_absolute_paths(started_with, Destination.of(started_with))
    if digest(absolute_before) != digest(with_absolute_paths(config, destination)):
        remedy = f"{folder.command('resume')} uses the run's own settings, --overwrite starts over"
        raise OtherRunError("resume", folder.path, remedy, problem="is a run with other settings")
    finished = record.get("finished") and destination.video.exists()
    if finished and not (config.overwrite and changed_settings(config, destination)):
        return "done"
    check_files(
        config,
        destination,
        overwrite=config.overwrite,
        own=_own_files(folder, started_with),
        denoise=not folder.has_latents(),
    )
    check_sources(config, folder)
    return "resume"


def check_same(folder: RunFolder, *, weights: str, noise: str) -> None:
    """Raise OtherRunError if the run in `folder` was started with other weights or noise, by their digests."""
    record = folder.record() or {}
    for field, what, now in (("model", "weights", weights), ("noise_from", "noise", noise)):
        # records of older versions say nothing of the noise
        if record.get(what, now) != now:
            remedy = f"restore the former {what}, or start over with `vinfinity generate --overwrite`"
            raise OtherRunError(field, folder.path, remedy, problem=f"was started with other {what}")


def _own_files(folder: RunFolder, started_with: RunConfig) -> set[str]:
    """Real paths of the files that a run may replace: those it was started for, and those it has made since.

    They lie beside its folder, wherever that was moved to.
    """
    started = Destination.of(dataclasses.replace(started_with, out=_own_video(folder, started_with)))
    files = [started.video, started.sheet, started.latents]
    for name, made in _recorded_files(folder).items():
        video, latents = folder.path.parent / name, made.get("save_latents")
        sheet = sheet_of(video, is_folder=container_of(name) is None)
        files += [video, sheet if made.get("video.sheet") else None, Path(str(latents)) if latents else None]
    return {os.path.realpath(path) for path in files if path is not None}


def check_done(config: RunConfig, destination: Destination) -> None:
    """Raise InputError if the files of a finished run were made with other settings than those of `config`."""
    if changed := changed_settings(config, destination):
        folder, video = destination.folder, destination.video
        out = f"{video}/" if destination.format.container.is_folder else str(video)
        beside = [] if absolute(video) == absolute(own_video(folder)) else ["--out", out]
        given = (f"{key}={plain_text(value)}" for key, value in changed.items())
        again = folder.command("decode", *beside, "--overwrite", *given)
        remedy = f"{again}, or overwrite=true in this command, makes its files again"
        key, value = next(iter(changed.items()))
        raise InputError(key, value, remedy, problem="is not what the finished video was made with")


def changed_settings(config: RunConfig, destination: Destination) -> dict[str, object]:
    """The settings of a finished run's files in which `config` differs from what they were made with."""
    before = made_with(destination.folder, destination.video)
    now = _of_files(with_absolute_paths(config, destination))
    changed = {key: value for key, value in now.items() if value != before[key]}
    if config.save_latents is None:
        # the copy that is there stays
        changed.pop("save_latents", None)
    video = {name: before[f"video.{name}"] for name in vars(config.video)}
    with contextlib.suppress(InputError):
        # a default that is written out is the same format
        if choose_format(config.out, VideoConfig(**video)) == config.format:
            same = vars(config.video).keys() - {"metadata", "sheet"}
            changed = {key: value for key, value in changed.items() if key.removeprefix("video.") not in same}
    return changed


def made_with(folder: RunFolder, video: Path) -> dict[str, Any]:
    """The settings that the files of a run were made with: as recorded for `video`, else those it started with."""
    made = _recorded_files(folder).get(video.name, {})
    keys = [key for key in declared() if _is_of_files(key)]
    if not made.keys() >= set(keys):
        # of an older version
        made = {**_of_files(read_settings(folder)), **made}
    # those of older versions may have links or `..` in their paths
    return {key: _absolute(str(made[key])) if key in FILES and made[key] else made[key] for key in keys}


def record_of_files(folder: RunFolder, config: RunConfig, destination: Destination) -> dict[str, object]:
    """What run.json says of the files that were made from a run's latents: by name of the video, their settings."""
    recorded, name = _recorded_files(folder), destination.video.name
    made = _of_files(with_absolute_paths(config, destination))
    # the copy that is there stays
    made["save_latents"] = made["save_latents"] or recorded.get(name, {}).get("save_latents")
    return {"files": {**recorded, name: made}}


def _recorded_files(folder: RunFolder) -> dict[str, dict[str, object]]:
    return (folder.record() or {}).get("files", {})


def _of_files(config: RunConfig) -> dict[str, object]:
    return {key: value for key, value in leaves(config).items() if _is_of_files(key)}


def _is_of_files(key: str) -> bool:
    """Whether a setting changes the files that are made from a run's latents."""
    return key in OF_FILES or key.startswith("video.")


def was_restarted(environment: Mapping[str, str]) -> bool:
    """Whether a launcher restarted this job or its ranks: torchrun's --max-restarts, or a requeued SLURM job."""
    return bool(restarted_by(environment))


def restarted_by(environment: Mapping[str, str]) -> list[str]:
    """The launchers that restarted this job or its ranks."""
    return [launcher for launcher, name in RESTARTS.items() if environment.get(name, "0") not in ("", "0")]


def jobs_of(environment: Mapping[str, str], *, parent: int) -> dict[str, str]:
    """What this job is to each launcher, the same after a restart and on all ranks. parent: process of this one."""
    jobs = {}
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    if job := f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID"):
        jobs["SLURM"] = job
    if job := environment.get("TORCHELASTIC_RUN_ID"):
        one_node = environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE")
        # torchrun gives all jobs the same name unless it is told one; its own process then tells them apart
        jobs["torchrun"] = f"process {parent}" if job == "none" and one_node else job
    return jobs


def with_absolute_paths(config: RunConfig, destination: Destination) -> RunConfig:
    """The configuration with absolute paths, the same from any working directory and through any links of folders."""

    def absolute_or_none(path: str | None) -> str | None:
        return None if path is None else _absolute(path)

    def absolute_model(model: str) -> str:
        return _absolute(model) if find_model(model) == expanded(model, field="model") else model

    def first_model(model: str | None) -> str | None:
        # once its video is there, the model of a first pass is not needed any more
        with contextlib.suppress(InputError):
            return None if model is None else absolute_model(model)
        return model

    given = config.input
    return dataclasses.replace(
        config,
        input=dataclasses.replace(
            given,
            video=absolute_or_none(given.video),
            first_frame=absolute_or_none(given.first_frame),
            last_frame=absolute_or_none(given.last_frame),
        ),
        model=absolute_model(config.model),
        lora=tuple(_absolute(lora) for lora in config.lora),
        decoder=absolute_or_none(config.decoder),
        noise_from=absolute_or_none(config.noise_from),
        save_latents=absolute_or_none(config.save_latents),
        edit=dataclasses.replace(config.edit, run=absolute_or_none(config.edit.run)),
        audio=absolute_or_none(config.audio),
        first_pass=dataclasses.replace(
            config.first_pass,
            model=first_model(config.first_pass.model),
            lora=None
            if config.first_pass.lora is None
            else tuple(_absolute(lora) for lora in config.first_pass.lora),
        ),
        out=_absolute(str(destination.video)) + ("/" if destination.format.container.is_folder else ""),
    )


def _absolute(path: str) -> str:
    return str(absolute(expanded(path, field="path")))


def read_settings(folder: RunFolder) -> RunConfig:
    """The settings that a run started with. Raises InputError if config.yaml was changed since."""
    if folder.identity() != (folder.record() or {}).get("settings"):
        remedy = "restore it, or start a new run"
        raise InputError("run", folder.settings, remedy, problem="was changed after the run started")
    return load(folder.settings).config


def load_run(
    folder: RunFolder,
    *,
    overrides: list[str],
    flags: Mapping[str, object],
    chosen: Mapping[str, object] | None = None,
) -> Resolved:
    """The settings of a run, with changes that do not affect the video's latents. Raises InputError.

    chosen: what the command chooses where neither `overrides` nor `flags` names a setting. The video goes beside the
    folder and takes its name, wherever the folder was moved to.
    """
    started_with = read_settings(folder)
    out, named = _own_video(folder, started_with), _named(overrides)
    video = expanded(str(flags.get("out") or named.get("out") or out), field="out")
    # another video that was decoded from the run has settings of its own
    if video.name not in _recorded_files(folder) or absolute(video).parent != absolute(folder.path).parent:
        video = Path(out)
    made = made_with(folder, video)
    own = {**made, "out": out, "overwrite": False, **(chosen or {})}
    resolved = load(folder.settings, chosen=own, overrides=overrides, flags=flags, card=model_defaults)
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
    """Raise InputError if a setting was given that decoding does not use."""
    for key, value in leaves(resolved.config).items():
        used = _is_of_files(key) or key in OF_DECODING or key.startswith("decode.")
        if resolved.origins[key] == COMMAND_LINE and not used and not changes_latents(key):
            raise InputError(key, value, "leave it out", problem="has no effect on decoding")


def resumed(
    folder: RunFolder,
    *,
    overrides: list[str],
    flags: Mapping[str, object],
    chosen: Mapping[str, object] | None = None,
) -> Resolved:
    """The settings with which a run is resumed, see `load_run`. Raises InputError if they would start another one."""
    resolved = load_run(folder, overrides=overrides, flags=flags, chosen={"resume": True, **(chosen or {})})
    config, own = resolved.config, own_video(folder)
    with name_sources(resolved.origins):
        if not config.resume:
            raise InputError("resume", False, "leave it out", problem="would start the run over")
        if absolute(Destination.of(config).video) != absolute(own):
            remedy = "leave it out; `vinfinity decode` makes another video of a finished run"
            raise InputError("out", config.out, remedy, problem="is not the video of this run")
    return resolved


def edited(
    folder: RunFolder,
    kind: str,
    *,
    overrides: list[str],
    given: Mapping[str, str | None],
    flags: Mapping[str, object],
    chosen: Mapping[str, object] | None = None,
) -> Resolved:
    """The settings of a video that keeps an earlier run's frames, except for a span (`edit.redo`), or adds frames.

    given: flags that say what is edited, `frames` as `+N`. chosen: what the command chooses where neither `overrides`
    nor `flags` names a setting. The video is then named after the earlier one and `kind`. Raises InputError.
    """
    started_with = read_settings(folder)
    flags = {key: value for key, value in (*flags.items(), *given.items()) if value is not None}
    frames = started_with.frames + int(given.get("frames") or 0)
    flags |= {"frames": frames} if "frames" in flags else {}
    own: dict[str, object] = {
        "resume": False,
        "overwrite": False,
        "out": _edited_video(folder, started_with, kind),
        "seed": (started_with.seed + (kind == "redo")) % 2**63,
        "save_latents": None,
        "noise_from": None,
        "edit.run": str(folder.path.absolute()),
        "edit.redo": None,
        # what is regenerated is not held to a picture, and what is appended has no video behind it, unless one is given
        "input.first_frame": None,
        "input.last_frame": None,
    }
    if kind != "redo" or not started_with.starts_from_video:
        own |= {"input.video": None, "input.strength": None, "input.fit": None, "input.keep_audio": False}
        own |= {key: None for key in declared() if key.startswith("first_pass.")}
        # the sound goes on where the video is longer
        own |= {"audio": started_with.input.video} if started_with.input.keep_audio else {}
    named, edits = _named(overrides), "edit.redo" if kind == "redo" else "frames"
    if edits in named:
        problem = "is given beside --frames"
        raise InputError(edits, named[edits], "leave it out", problem=problem, source=COMMAND_LINE)
    if started_with.prompts and "prompts" not in named:
        text = named.get("prompt") if given.get("prompt") is None else given["prompt"]
        own |= _edited_prompts(started_with, kind, text=text, frames=frames)
        flags.pop("prompt", None)
        overrides = [override for override in overrides if not override.startswith("prompt=")]
    own |= chosen or {}
    return load(folder.settings, chosen=own, overrides=overrides, flags=flags, card=model_defaults)


def _named(overrides: Sequence[str]) -> dict[str, str]:
    """The text of each setting that KEY=VALUE arguments name."""
    return {key: text for key, _, text in (override.partition("=") for override in overrides)}


def own_video(folder: RunFolder) -> Path:
    """The video that a run makes. Raises InputError if config.yaml was changed since it started."""
    return Path(_own_video(folder, read_settings(folder)))


def _own_video(folder: RunFolder, started_with: RunConfig) -> str:
    """The video of a run, with the / of a folder."""
    return video_of(folder, started_with.out or ".mp4")


def _edited_video(folder: RunFolder, started_with: RunConfig, kind: str) -> str:
    """The video of an edit, beside that of the earlier run."""
    video = _own_video(folder, started_with)
    if video.endswith("/"):
        return f"{video[:-1]}-{kind}/"
    return str(Path(video).with_stem(f"{Path(video).stem}-{kind}"))


def _edited_prompts(before: RunConfig, kind: str, *, text: str | None, frames: int) -> dict[str, object]:
    """Prompts over time in an edit: those of the earlier video, in frames, since parts of a longer video are others.

    text: of the new frames. In a redo, it guides all frames. frames: of the new video.
    """
    if text is not None and kind == "redo":
        return {"prompt": text, "prompts": []}
    timed = timed_prompts(before)
    negatives = [None] * bool(before.prompt) + [prompt.negative for prompt in before.prompts]
    prompts: list[dict[str, object]] = [
        {"at": p.start, "text": p.text, "negative": negative, "blend": p.blend, "cut": p.cut}
        for p, negative in zip(timed, negatives, strict=True)
    ]
    if text is not None:
        last, added = timed[-1], frames - before.frames
        # 0 at the beginning: what can be extended is not a loop
        prompts[0]["blend"] = 0
        room = min(before.frames - last.start, 2 * (before.frames - last.window[1]), added)
        prompts.append({"at": before.frames, "text": text, "blend": int(min(BLEND, room))})
    return {"prompt": "", "prompts": prompts}
