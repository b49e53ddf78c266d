"""The settings that the files of a run were made with, as its run.json records them. Imports no torch."""

import contextlib
from pathlib import Path
from typing import Any

from vinfinity.config import RunConfig, VideoConfig, choose_format, declared, leaves
from vinfinity.errors import InputError
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.runs.settings import absolute_path, read_settings, with_absolute_paths

# settings of a video's files, in addition to those of the group `video`
FILE_PATHS = ("decoder", "audio", "save_latents")
FILE_SETTINGS = (*FILE_PATHS, "input.keep_audio")


def changed_settings(config: RunConfig, destination: Destination) -> dict[str, object]:
    """Return the settings of `config` that differ from those that a finished run's files were made with."""
    before = made_with(destination.folder, destination.video)
    now = _file_settings(with_absolute_paths(config, destination))
    changed = {key: value for key, value in now.items() if value != before[key]}
    if config.save_latents is None:
        # an existing copy is kept
        changed.pop("save_latents", None)
    video = {name: before[f"video.{name}"] for name in vars(config.video)}
    with contextlib.suppress(InputError):
        # naming a default explicitly does not change the format
        if choose_format(config.out, VideoConfig(**video)) == config.format:
            same = vars(config.video).keys() - {"metadata", "sheet"}
            changed = {key: value for key, value in changed.items() if key.removeprefix("video.") not in same}
    return changed


def made_with(folder: RunFolder, video: Path) -> dict[str, Any]:
    """Return the settings that the files of `video` were made with: as recorded, or else as the run started."""
    settings = recorded_files(folder).get(video.name, {})
    keys = [key for key in declared() if is_file_setting(key)]
    if not settings.keys() >= set(keys):
        # older versions recorded none, or fewer
        settings = {**_file_settings(read_settings(folder)), **settings}
    # older versions kept links and `..` in absolute paths
    paths = {key: absolute_path(str(settings[key])) for key in FILE_PATHS if settings[key]}
    return {key: settings[key] for key in keys} | paths


def record_of_files(folder: RunFolder, config: RunConfig, destination: Destination) -> dict[str, object]:
    """Return the entry of run.json for the files made from a run's latents, with those of `destination` added.

    It maps the name of each video to the settings of its files.
    """
    recorded, name = recorded_files(folder), destination.video.name
    settings = _file_settings(with_absolute_paths(config, destination))
    # an existing copy is kept
    settings["save_latents"] = settings["save_latents"] or recorded.get(name, {}).get("save_latents")
    return {"files": {**recorded, name: settings}}


def recorded_files(folder: RunFolder) -> dict[str, dict[str, object]]:
    """Return the settings of the files that run.json records, by name of the video. Raises InputError."""
    return (folder.record() or {}).get("files", {})


def _file_settings(config: RunConfig) -> dict[str, object]:
    return {key: value for key, value in leaves(config).items() if is_file_setting(key)}


def is_file_setting(key: str) -> bool:
    """Return whether a setting changes the files made from a run's latents."""
    return key in FILE_SETTINGS or key.startswith("video.")
