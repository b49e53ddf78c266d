"""The settings that a run started with, as its config.yaml holds them. Imports no torch."""

import contextlib
import dataclasses
from pathlib import Path

from vinfinity.config import RunConfig, load
from vinfinity.errors import InputError
from vinfinity.runs.folder import RunFolder, video_of
from vinfinity.runs.paths import Destination
from vinfinity.system.folders import absolute, expanded
from vinfinity.weights.card import find_model


def read_settings(folder: RunFolder) -> RunConfig:
    """Return the settings that a run started with. Raises InputError if config.yaml has changed since."""
    if folder.identity() != (folder.record() or {}).get("settings"):
        remedy = "restore it, or start a new run"
        raise InputError("run", folder.settings, remedy, problem="was changed after the run started")
    return load(folder.settings).config


def own_video(folder: RunFolder) -> Path:
    """Return the video that a run makes. Raises InputError if config.yaml has changed since the run started."""
    return Path(own_out(folder, read_settings(folder)))


def own_out(folder: RunFolder, started_with: RunConfig) -> str:
    """Return the video that a run makes, as the setting `out` names it: a folder of PNG ends in a slash."""
    return video_of(folder, started_with.out or ".mp4")


def with_absolute_paths(config: RunConfig, destination: Destination) -> RunConfig:
    """Return `config` with absolute paths, equal from any working directory and through any links to folders."""

    def absolute_or_none(path: str | None) -> str | None:
        return None if path is None else absolute_path(path)

    def absolute_model(model: str) -> str:
        return absolute_path(model) if find_model(model) == expanded(model, field="model") else model

    def first_model(model: str | None) -> str | None:
        # the model of a first pass may be gone once its video exists
        with contextlib.suppress(InputError):
            return None if model is None else absolute_model(model)
        return model

    first_pass = config.first_pass
    return dataclasses.replace(
        config,
        input=dataclasses.replace(
            config.input,
            video=absolute_or_none(config.input.video),
            first_frame=absolute_or_none(config.input.first_frame),
            last_frame=absolute_or_none(config.input.last_frame),
        ),
        model=absolute_model(config.model),
        lora=tuple(absolute_path(lora) for lora in config.lora),
        decoder=absolute_or_none(config.decoder),
        noise_from=absolute_or_none(config.noise_from),
        save_latents=absolute_or_none(config.save_latents),
        edit=dataclasses.replace(config.edit, run=absolute_or_none(config.edit.run)),
        audio=absolute_or_none(config.audio),
        first_pass=dataclasses.replace(
            first_pass,
            model=first_model(first_pass.model),
            lora=None if first_pass.lora is None else tuple(absolute_path(lora) for lora in first_pass.lora),
        ),
        out=absolute_path(str(destination.video)) + ("/" if destination.format.container.is_folder else ""),
    )


def absolute_path(path: str) -> str:
    """Return the absolute path of a file that a setting names, see `absolute`."""
    return str(absolute(expanded(path, field="path")))
