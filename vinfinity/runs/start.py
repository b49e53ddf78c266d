"""Whether a run starts, goes on or is done already. Imports no torch: it is asked before torch is loaded."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vinfinity.config import Resolved, RunConfig, changes_latents, digest, leaves, load, name_sources
from vinfinity.errors import InputError
from vinfinity.runs.folder import RunFolder, run_folder
from vinfinity.runs.paths import check_files, output_path
from vinfinity.weights.card import find_model, model_defaults

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
    if digest(read_settings(folder)) != digest(anchored(config)):
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
        edit=dataclasses.replace(config.edit, run=absolute_or_none(config.edit.run)),
        out=absolute(str(output_path(config))),
    )


def read_settings(folder: RunFolder) -> RunConfig:
    """The configuration that a run was begun with. Raises InputError where config.yaml is no longer that."""
    if folder.identity() != (folder.record() or {}).get("settings"):
        remedy = "put it back as it was, or start a new run"
        raise InputError("run", folder.settings, remedy, problem="is not what the run was begun with")
    return load(folder.settings).config


def load_run(folder: RunFolder, *, overrides: list[str], flags: Mapping[str, object]) -> Resolved:
    """The configuration of a run, changed in what does not change the video's latents. Raises InputError.

    The video goes beside the folder and takes its name, wherever that was moved to.
    """
    began = read_settings(folder)
    out = folder.path.with_suffix(Path(began.out or ".mp4").suffix or ".mp4")
    given = {key: value for key, value in flags.items() if value is not None}
    flags = {"out": str(out)} | given
    resolved = load(folder.settings, overrides=overrides, flags=flags, card=model_defaults)
    ours, theirs = leaves(resolved.config), leaves(began)
    for key in ours:
        if ours[key] != theirs[key] and changes_latents(key):
            with name_sources(resolved.origins):
                raise InputError(key, ours[key], "start a new run for it", problem="would give another video")
    return resolved


def edited(
    folder: RunFolder,
    kind: str,
    *,
    overrides: list[str],
    given: Mapping[str, str | None],
    flags: Mapping[str, object],
) -> Resolved:
    """The configuration of a video that is an earlier run's, but for a stretch (`edit.redo`) or more frames.

    given: what the command line names, `frames` as `+N`. Its name is the earlier one's with `kind`, unless `flags` has
    an `out`. Raises InputError.
    """
    began = read_settings(folder)
    video = folder.path.with_suffix(".mp4")
    values: dict[str, object] = {
        "resume": False,
        "out": str(video.with_stem(f"{video.stem}-{kind}")),
        "seed": (began.seed + (kind == "redo")) % 2**63,
    }
    values |= {key: value for key, value in (*flags.items(), *given.items()) if value is not None}
    if "frames" in given:
        values["frames"] = began.frames + int(str(given["frames"]))
    own = [f"edit.run={folder.path.absolute()}", "save_latents=null", "noise_from=null"]
    own += [] if "edit.redo" in values else ["edit.redo=null"]
    return load(folder.settings, overrides=[*own, *overrides], flags=values, card=model_defaults)
