"""Whether a run starts, goes on or is done already. Imports no torch: it is asked before torch is loaded."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vinfinity.config import RunConfig, digest, leaves, load, of_the_video
from vinfinity.errors import InputError
from vinfinity.media.files import check_files, output_path
from vinfinity.runs.folder import RunFolder, run_folder
from vinfinity.weights.card import find_model

Start = Literal["new", "resume", "done"]

# What launchers set when they start a job or its ranks again.
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def how_to_start(config: RunConfig) -> Start:
    """Whether `config` starts a new run, goes on with one, or asks for one that is done.

    Raises InputError where a new run would take the place of one that has computed something, or where the run to go
    on with is another one.
    """
    folder, video = run_folder(output_path(config)), output_path(config)
    record = folder.record()
    if not config.resume or record is None:
        check_files(dataclasses.replace(config, resume=False))
        if folder.holds_work() and not config.overwrite:
            remedy = f"`vinfinity resume {folder.path}` goes on with it, --overwrite starts anew"
            raise InputError("out", video, remedy, problem="belongs to a run that was begun and not finished")
        return "new"
    if record.get("settings") != digest(anchored(config)):
        remedy = f"`vinfinity resume {folder.path}` takes those it began with, --overwrite starts anew"
        raise InputError("resume", folder.path, remedy, problem="is a run with other settings")
    return "done" if record.get("finished") and video.exists() else "resume"


def was_restarted(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this job or these ranks before: torchrun's --max-restarts, or a requeued SLURM job."""
    return any(environment.get(name, "0") not in ("", "0") for name in RESTARTS)


def anchored(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, which mean the same from any working directory."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    def absolute_or_none(path: str | None) -> str | None:
        return None if path is None else absolute(path)

    given_as_folder = find_model(config.model) == Path(config.model).expanduser()
    return dataclasses.replace(
        config,
        model=absolute(config.model) if given_as_folder else config.model,
        lora=tuple(absolute(lora) for lora in config.lora),
        decoder=absolute_or_none(config.decoder),
        noise_from=absolute_or_none(config.noise_from),
        save_latents=absolute_or_none(config.save_latents),
        out=absolute(str(output_path(config))),
    )


def load_run(folder: RunFolder, *, overrides: list[str], flags: Mapping[str, object]) -> RunConfig:
    """The configuration of a run, changed in what does not change the video's latents. Raises InputError.

    The video goes beside the folder and takes its name, wherever that was moved to.
    """
    began = load(folder.settings).config
    out = folder.path.with_suffix(Path(began.out or ".mp4").suffix or ".mp4")
    given = {key: value for key, value in flags.items() if value is not None}
    config = load(folder.settings, overrides=overrides, flags={"out": str(out)} | given).config
    ours, theirs = leaves(config), leaves(began)
    for key in ours:
        if ours[key] != theirs[key] and of_the_video(key):
            raise InputError(key, ours[key], "start a new run for it", problem="would give another video")
    return config
