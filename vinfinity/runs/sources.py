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
    """The pictures of some frames of a video, in order.

    files: one video, or a picture for each frame. frames: the number of frames.
    """

    files: Sequence[Source]
    frames: int
    fps: Fraction
    size: tuple[int, int]
    fit: str

    def read(self, frames: range) -> "Iterator[np.ndarray]":
        """Yield the pictures of some frames, (height, width, 3) uint8. Raises InputError if a file is damaged."""
        if len(self.files) == self.frames:
            for frame in frames:
                yield from self._of(self.files[frame], range(1))
        else:
            yield from self._of(self.files[0], frames)

    def _of(self, source: Source, frames: range) -> "Iterator[np.ndarray]":
        return read_frames(source, fps=self.fps, frames=frames, size=self.size, fit=self.fit)

    def concerns(self) -> list[str]:
        """Return warnings for users, before the run starts."""
        return [concern for source in self.files for concern in source.concerns()]


def open_input(config: RunConfig, folder: RunFolder | None = None) -> Sources:
    """Open the video that a run starts from: a file, or the result of the first pass in the run's folder.

    Raises InputError if it cannot be used, or is shorter than the run's video.
    """
    path = config.input.video
    if path is None:
        assert folder is not None, "a first pass has a run folder"
        path = str(folder.first_pass)
    source = open_video(path)
    fps = Fraction(config.fps)
    available = source.frames_at(fps)
    if config.frames > available:
        remedy = f"use at most {available}, and extend the video afterwards"
        problem = f"is more than the {available} frames that {source.path.name} has at {config.fps} fps"
        raise InputError("frames", config.frames, remedy, problem=problem)
    return Sources([source], config.frames, fps, config.resolution, config.input.fit or "cover")


def open_pictures(config: RunConfig) -> Sources:
    """Open the pictures that frames of a run must match. Raises InputError if they cannot be used."""
    opened = [open_picture(path, field=field) for field, path in config.input.pictures.items()]
    for source in opened:
        check_shape(source, config.resolution, fit=config.input.fit)
    return Sources(opened, len(opened), Fraction(1), config.resolution, config.input.fit or "cover")


def check_sources(config: RunConfig, folder: RunFolder | None = None) -> list[str]:
    """Raise InputError if the source video or a picture cannot be used; return warnings about them.

    folder: the run's folder if it resumes, None for a new run. Files that the run has already encoded are not needed,
    and the result of a first pass does not exist yet.
    """
    concerns: list[str] = []
    if folder is not None and folder.has_latents():
        return concerns
    video, pictures = config.input.video is not None, config.input.pictures
    earlier = encoded_before(config)
    if config.two_passes and config.edit.run is not None and earlier is None:
        problem = "has no latents of the same first pass"
        remedy = "keep its first_pass and input.fit, or name another video with input.video=FILE"
        raise InputError("edit.run", config.edit.run, remedy, problem=problem)
    if video and earlier is None and not (folder and video_is_encoded(folder, config)):
        concerns += open_input(config).concerns()
    if pictures and not (folder and _is_encoded(folder.pictures, len(pictures))):
        concerns += open_pictures(config).concerns()
    return concerns


def video_is_encoded(folder: RunFolder, config: RunConfig) -> bool:
    """Return whether a run has the latents of the whole video that it starts from."""
    latent_frames = read_card(config.model).geometry.latent_frames(config.frames)
    return _is_encoded(folder.input, latent_frames)


def _is_encoded(folder: Path, frames: int) -> bool:
    """Return whether a folder of parts has the given number of latent frames; reads only its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["parts"][-1]["stop"] == frames)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False


def encoded_before(config: RunConfig) -> Path | None:
    """Return the edited run's folder of the source's latents, if it encoded the same video in the same way."""
    if config.edit.run is None or not config.starts_from_video:
        return None
    folder = RunFolder(Path(config.edit.run))
    try:
        earlier = load(folder.settings).config
    except InputError:
        # the folder has no usable settings, which is reported when the run is opened
        return None

    def encoding(config: RunConfig) -> tuple[object, ...]:
        source = config.input
        return source.video, config.first_pass, source.fit, config.size, config.fps, config.frames

    same = encoding(earlier) == encoding(config)
    return folder.input if same and video_is_encoded(folder, config) else None
