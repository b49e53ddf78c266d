"""The video and the pictures that a run starts from: checked, and found again once encoded. Imports no torch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vinfinity.config import RunConfig, load
from vinfinity.errors import InputError
from vinfinity.media.source import Source, check_shape, open_picture, open_video, read_frames
from vinfinity.runs.folder import MANIFEST, RunFolder
from vinfinity.weights.card import read_card

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sources:
    """Files that give the pictures of some frames of a video, in order: one video, or a picture for each frame."""

    files: Sequence[Source]
    frames: int
    fps: Fraction
    size: tuple[int, int]
    fit: str

    def read(self, frames: range) -> "Iterator[np.ndarray]":
        """The pictures of some frames, (height, width, 3) uint8. Raises InputError if a file is damaged."""
        if len(self.files) == self.frames:
            for frame in frames:
                yield from self._of(self.files[frame], range(1))
        else:
            yield from self._of(self.files[0], frames)

    def _of(self, source: Source, frames: range) -> "Iterator[np.ndarray]":
        return read_frames(source, fps=self.fps, frames=frames, size=self.size, fit=self.fit)

    def concerns(self) -> list[str]:
        """What users should know before they wait."""
        return [concern for source in self.files for concern in source.concerns()]


def open_input(config: RunConfig, folder: RunFolder | None = None) -> Sources:
    """The video that a run starts from: a file, or the result of the first pass in its folder.

    Raises InputError if it cannot be used, or is shorter than the run's.
    """
    path = config.input.video
    if path is None:
        assert folder is not None, "a first pass has a run folder"
        path = str(folder.first_pass)
    source = open_video(path)
    fps = Fraction(config.fps)
    available = source.frames_at(fps)
    if config.frames > available:
        remedy = f"ask for at most {available}, and extend the video afterwards"
        problem = f"is more than the {available} frames that {source.path.name} has at {config.fps} fps"
        raise InputError("frames", config.frames, remedy, problem=problem)
    return Sources([source], config.frames, fps, config.resolution, config.input.fit or "cover")


def open_pictures(config: RunConfig) -> Sources:
    """The pictures that frames of a run are held to. Raises InputError if they cannot be used."""
    opened = [open_picture(path, field=field) for field, path in config.input.pictures.items()]
    for source in opened:
        check_shape(source, config.resolution, fit=config.input.fit)
    return Sources(opened, len(opened), Fraction(1), config.resolution, config.input.fit or "cover")


def check_sources(config: RunConfig, folder: RunFolder | None = None) -> list[str]:
    """Raise InputError if the video or a picture to start from cannot be used. Returns what users should know of them.

    folder: of the run if it resumes; what it has encoded already is not needed any more. The result of a first pass is
    not there yet.
    """
    concerns: list[str] = []
    if folder is not None and folder.has_latents():
        return concerns
    video, pictures = config.input.video is not None, config.input.pictures
    earlier = encoded_before(config)
    if config.two_passes and config.edit.run is not None and earlier is None:
        problem = "has no latents of the same first pass"
        remedy = "keep its first_pass and input.fit, or give another video with input.video=FILE"
        raise InputError("edit.run", config.edit.run, remedy, problem=problem)
    if video and earlier is None and not (folder and video_is_encoded(folder, config)):
        concerns += open_input(config).concerns()
    if pictures and not (folder and _is_encoded(folder.pictures, len(pictures))):
        concerns += open_pictures(config).concerns()
    return concerns


def video_is_encoded(folder: RunFolder, config: RunConfig) -> bool:
    """Whether a run has the latents of all of the video that it starts from."""
    latent_frames = read_card(config.model).geometry.latent_frames(config.frames)
    return _is_encoded(folder.input, latent_frames)


def _is_encoded(folder: Path, frames: int) -> bool:
    """Whether a folder of parts has so many latent frames, by its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["parts"][-1]["stop"] == frames)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False


def encoded_before(config: RunConfig) -> Path | None:
    """The folder of latents in which the run that is edited has encoded the same video in the same way; or None."""
    if config.edit.run is None or not config.starts_from_video:
        return None
    folder = RunFolder(Path(config.edit.run))
    try:
        earlier = load(folder.settings).config
    except InputError:
        # of a run without settings, which is reported where it is opened
        return None

    def way(config: RunConfig) -> tuple[object, ...]:
        given = config.input
        return given.video, config.first_pass, given.fit, config.size, config.fps, config.frames

    return folder.input if way(earlier) == way(config) and video_is_encoded(folder, config) else None
