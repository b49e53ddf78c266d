"""Whether a run starts, resumes or is done. Imports no torch: it is decided before torch is loaded."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vinfinity.config import RunConfig, digest, plain_text
from vinfinity.config.formats import container_of
from vinfinity.errors import InputError
from vinfinity.parallel.restarts import was_restarted
from vinfinity.runs.files_record import changed_settings, recorded_files
from vinfinity.runs.folder import RunFolder, video_of
from vinfinity.runs.paths import Destination, check_emptied, check_files, sheet_of
from vinfinity.runs.settings import own_out, own_video, read_settings, with_absolute_paths
from vinfinity.runs.sources import check_sources
from vinfinity.system.folders import absolute

Start = Literal["new", "resume", "done"]


class OtherRunError(InputError):
    """The folder of a video holds a run with other settings, weights or noise, which `resume` does not continue."""


def settle_start(
    config: RunConfig, destination: Destination, *, replaces: bool = True
) -> tuple[RunConfig, Start]:
    """Decide how `config` starts, see `how_to_start`; return it with `resume` off if it replaces another run.

    That is the case if both `resume` and `overwrite` are set, and the folder holds a run that cannot be resumed.
    replaces: whether it may; `overwrite` of `vinfinity resume` applies only to files. `resume` is on if a launcher has
    restarted this job. Raises InputError.
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
    """Return whether `config` starts a new run, resumes one, or names one that is done. Raises InputError if refused.

    The run folder holds           by default   overwrite   resume    both
    no run                         new          new         new       new
    the run of another video       refused      refused     refused   refused
    a run with the same settings   refused      new         resume    resume
    a run with other settings      refused      new         refused   new, see `settle_start`

    A new run always replaces a run that has computed nothing. Instead of being resumed, a run is done if it is
    finished and its video exists; with `overwrite`, only if its files were also made with the same settings. `resume`
    also accepts a video that `decode` has made from the run.

    A resumed run may replace the files that it was started for or has made, a new run none; with `overwrite`, either
    may replace any file.
    """
    folder, record = destination.folder, destination.folder.record()
    if record is not None:
        _check_owner(config, destination, record)
        if config.resume:
            return _resume_or_done(config, destination, record)
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
    """Raise InputError if the folder is another video's: ball.mp4 and ball.gif share ball.run."""
    folder, name = destination.folder, destination.video.name
    owner = Path(video_of(folder, record.get("config", {}).get("out") or ".mp4")).name
    if name == owner or (config.resume and name in recorded_files(folder)):
        return
    problem = f"needs the folder {folder.path}, which holds the run of {owner}"
    remedy = (
        "use another name, or delete the folder; `vinfinity decode` makes other formats of a finished video"
    )
    raise InputError("out", destination.video, remedy, problem=problem)


def check_decoded_beside(folder: RunFolder, destination: Destination) -> None:
    """Raise InputError if a video decoded from the run in `folder` would count as the video of another run."""
    beside = destination.folder
    if os.path.realpath(beside.path) != os.path.realpath(folder.path) and beside.record() is not None:
        problem = f"belongs to the folder {beside.path}, which holds another run"
        raise InputError("out", destination.video, "choose another name", problem=problem)


def _resume_or_done(config: RunConfig, destination: Destination, record: Mapping[str, Any]) -> Start:
    """Return whether the run of a video resumes or is done. Raises OtherRunError if it has other settings."""
    folder = destination.folder
    started_with = read_settings(folder)
    # older versions kept links and `..` in absolute paths
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
        # older versions recorded no noise
        if record.get(what, now) != now:
            remedy = f"restore the former {what}, or start over with `vinfinity generate --overwrite`"
            raise OtherRunError(field, folder.path, remedy, problem=f"was started with other {what}")


def _own_files(folder: RunFolder, started_with: RunConfig) -> set[str]:
    """Return the real paths of the files that a run may replace: those in its settings, and those it has made.

    Its video and contact sheet lie beside its folder, wherever the folder was moved to.
    """
    started = Destination.of(dataclasses.replace(started_with, out=own_out(folder, started_with)))
    files = [started.video, started.sheet, started.latents]
    for name, settings in recorded_files(folder).items():
        video, latents = folder.path.parent / name, settings.get("save_latents")
        sheet = sheet_of(video, is_folder=container_of(name) is None)
        files += [
            video,
            sheet if settings.get("video.sheet") else None,
            Path(str(latents)) if latents else None,
        ]
    return {os.path.realpath(path) for path in files if path is not None}


def check_done(config: RunConfig, destination: Destination) -> None:
    """Raise InputError if the files of a finished run were made with settings other than those of `config`."""
    if changed := changed_settings(config, destination):
        folder, video = destination.folder, destination.video
        out = f"{video}/" if destination.format.container.is_folder else str(video)
        named = [] if absolute(video) == absolute(own_video(folder)) else ["--out", out]
        assignments = (f"{key}={plain_text(value)}" for key, value in changed.items())
        again = folder.command("decode", *named, "--overwrite", *assignments)
        remedy = f"{again}, or overwrite=true in this command, makes its files again"
        key, value = next(iter(changed.items()))
        raise InputError(key, value, remedy, problem="is not what the finished video was made with")
