"""The settings that the files of a run were made with, as its run.json records them. Imports no torch."""

import contextlib
from pathlib import Path
from typing import Any

from vinfinity.config import RunConfig, VideoConfig, choose_format, declared, leaves
from vinfinity.errors import InputError
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.runs.settings import read_settings, with_absolute_paths

# settings of a video's files, in addition to those of the group `video`
FILE_SETTINGS = ("decoder", "audio", "save_latents", "input.keep_audio")


def changed_settings(config: RunConfig, destination: Destination) -> dict[str, object]:
    """The settings of a finished run's files in which `config` differs from what they were made with."""
    before = made_with(destination.folder, destination.video)
    now = _file_settings(with_absolute_paths(config, destination))
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
    made = recorded_files(folder).get(video.name, {})
    keys = [key for key in declared() if _is_file_setting(key)]
    if not made.keys() >= set(keys):
        # of an older version
        made = {**_file_settings(read_settings(folder)), **made}
    return {key: made[key] for key in keys}


def record_of_files(folder: RunFolder, config: RunConfig, destination: Destination) -> dict[str, object]:
    """What run.json says of the files that were made from a run's latents: by name of the video, their settings."""
    recorded, name = recorded_files(folder), destination.video.name
    made = _file_settings(with_absolute_paths(config, destination))
    # the copy that is there stays
    made["save_latents"] = made["save_latents"] or recorded.get(name, {}).get("save_latents")
    return {"files": {**recorded, name: made}}


def recorded_files(folder: RunFolder) -> dict[str, dict[str, object]]:
    return (folder.record() or {}).get("files", {})


def _file_settings(config: RunConfig) -> dict[str, object]:
    return {key: value for key, value in leaves(config).items() if _is_file_setting(key)}


def _is_file_setting(key: str) -> bool:
    """Whether a setting changes the files that are made from a run's latents."""
    return key in FILE_SETTINGS or key.startswith("video.")
