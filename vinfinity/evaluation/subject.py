"""A video to measure, and what its run records about it: borders, prompts, settings."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from vinfinity.config import RunConfig, leaves, plain_text, timed_prompts
from vinfinity.config.formats import container_of
from vinfinity.config.prompts import TimedPrompt
from vinfinity.errors import InputError, VinfinityError
from vinfinity.media.finish import DIGITS
from vinfinity.media.reader import FALLBACK_RATE, UnusableVideo, open_reader
from vinfinity.runs.folder import RECORD, SUFFIX, RunFolder, find_run, run_folder, video_of
from vinfinity.runs.settings import read_settings
from vinfinity.system.folders import expanded
from vinfinity.system.numbers import shown_rate

BorderKind = Literal["rank", "join", "prompt", "scene", "given"]
# the remedy for shorter videos
TWO_FRAMES = "measures compare frames; give at least two"
# what run.json says that a report repeats
PROVENANCE = ("version", "command", "device", "ranks", "weights", "decoder", "digest")


class FrameSource(Protocol):
    """A video whose frames can be read in order, as often as needed: (h, w, 3) uint8 each.

    size: (width, height). frames: their number, as far as it is known.
    """

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def frames(self) -> int: ...
    @property
    def fps(self) -> Fraction: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...


class FramesInMemory(Protocol):
    """A video as `vinfinity.generate` returns it."""

    @property
    def frames(self) -> np.ndarray: ...
    @property
    def fps(self) -> Fraction | int: ...


@dataclass(frozen=True)
class ArraySource:
    """Frames in memory. array: (f, h, w, 3) uint8."""

    array: np.ndarray
    fps: Fraction

    @property
    def size(self) -> tuple[int, int]:
        return self.array.shape[2], self.array.shape[1]

    @property
    def frames(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.array)


@dataclass(frozen=True)
class Border:
    """A place where a seam may show. frame: the first frame after it.

    kind: rank (the clips of two ranks meet), join (an edit), prompt (another prompt takes over), scene (a planned
    cut), given (by the user).
    """

    frame: int
    kind: BorderKind


@dataclass(frozen=True)
class Subject:
    """A video and what is known about it. path: None for frames in memory. settings: its run's settings, as text."""

    name: str
    source: FrameSource
    path: Path | None = None
    borders: tuple[Border, ...] = ()
    prompts: tuple[TimedPrompt, ...] = ()
    loop: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def scenes(self) -> frozenset[int]:
        """The first frames of scenes: cuts that were asked for."""
        return frozenset(border.frame for border in self.borders if border.kind == "scene")

    @property
    def seams(self) -> list[int]:
        """Borders at which nothing should be seen."""
        return sorted({border.frame for border in self.borders} - self.scenes)


def find_subject(
    video: str | Path | np.ndarray | FramesInMemory,
    *,
    fps: Fraction | int | None = None,
    borders: Sequence[int] = (),
    every: int | None = None,
) -> Subject:
    """Return a video file, a run folder, a folder of PNG, or frames in memory. Reads no frames.

    fps: of an array or a folder of PNG that no run tells of. borders: frames at which to look for seams. every: look
    for them at this interval in frames, too. Raises InputError, UnusableVideo if the video exists but is unusable.
    """
    if isinstance(video, str | Path):
        subject = _on_disk(expanded(video, field="video"), fps=fps)
    else:
        array, rate = (video, fps) if isinstance(video, np.ndarray) else (video.frames, video.fps)
        if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
            shape = "x".join(map(str, array.shape))
            remedy = "pass frames as (f, height, width, 3) uint8"
            raise InputError("video", f"{shape} {array.dtype}", remedy, problem="is not a video")
        subject = Subject("video", ArraySource(array, Fraction(rate or FALLBACK_RATE)))
    if subject.source.frames < 2:
        raise UnusableVideo("video", subject.name, TWO_FRAMES, problem="has one frame only")
    given = _given(borders, every, frames=subject.source.frames)
    ordered = sorted({*given, *subject.borders}, key=lambda border: (border.frame, border.kind))
    return replace(subject, borders=tuple(ordered))


def find_subjects(
    videos: Sequence[Path],
    *,
    fps: Fraction | int | None = None,
    borders: Sequence[int] = (),
    every: int | None = None,
) -> tuple[list[Subject], dict[str, VinfinityError]]:
    """Find one or several videos, and what is wrong with those that are unusable. Arguments: see `find_subject`.

    Raises InputError, also if the only video is of no use.
    """
    subjects: list[Subject] = []
    failures: dict[str, VinfinityError] = {}
    for video in videos:
        try:
            subjects.append(find_subject(video, fps=fps, borders=borders, every=every))
        except UnusableVideo as error:
            if len(videos) == 1:
                raise
            failures[str(video)] = error
    check_rate(subjects, fps)
    return subjects, failures


def check_rate(subjects: Sequence[Subject], fps: Fraction | int | None) -> None:
    """Raise InputError if a rate was given and all videos have another of their own."""
    if fps is not None and subjects and all(subject.source.fps != fps for subject in subjects):
        rate = shown_rate(subjects[0].source.fps)
        problem = f"is for folders of PNG, and has no effect on {subjects[0].name}, which has {rate} fps"
        raise InputError("fps", shown_rate(Fraction(fps)), "leave it out", problem=problem)


def videos_in(folder: Path) -> list[str]:
    """Return the names of the videos in a folder, sorted: files, and folders of PNG."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if (path.is_file() and container_of(path.name) is not None) or is_picture_folder(path)
    )


def is_run(path: Path) -> bool:
    """Return whether a path names a run folder."""
    return path.suffix == SUFFIX or (path / RECORD).is_file()


def is_picture_folder(path: Path) -> bool:
    """Return whether a path names a folder of PNG files."""
    return (path / f"{0:0{DIGITS}}.png").is_file()


def _given(borders: Sequence[int], every: int | None, *, frames: int) -> list[Border]:
    for frame in borders:
        if not 0 < frame < frames:
            remedy = f"give frames from 1 to {frames - 1}"
            raise InputError(
                "border", frame, remedy, problem=f"is not inside the video, which has {frames} frames"
            )
    if every is not None and not 1 < every < frames:
        # a seam is told from pairs that are not at a border
        problem = "makes every pair of frames a border" if every == 1 else "makes no border"
        remedy = f"give a number from 2 to {frames - 1}" if frames > 2 else "leave it out"
        raise InputError("every", every, remedy, problem=problem)
    spread = range(every, frames, every) if every else ()
    return [Border(frame, "given") for frame in sorted({*borders, *spread})]


def _on_disk(path: Path, *, fps: Fraction | int | None) -> Subject:
    if path.name in ("", ".."):
        # the current folder, whose name tells what run it belongs to
        path = Path(os.path.realpath(path))
    if is_run(path):
        folder = find_run(path)
        config = read_settings(folder)
        video = _video_of(folder, config)
        return _with_run(video, folder, config, name=str(path))
    # the root of a file system has no name, and no run next to it
    beside = (
        run_folder(path, is_folder=path.is_dir() and container_of(str(path)) is None) if path.name else None
    )
    if beside is not None and (beside.path / RECORD).is_file():
        # an unreadable run next to a readable video is no reason to refuse
        with contextlib.suppress(InputError):
            config = read_settings(beside)
            if Path(video_of(beside, config.out or ".mp4")) == path:
                return _with_run(path, beside, config, name=str(path))
    if path.is_dir() and not is_picture_folder(path) and (videos := videos_in(path)):
        problem = f"is a folder with videos, such as {videos[0]}"
        remedy = f"name them one by one, as {path}/*; `vinfinity compare` takes folders"
        raise InputError("video", path, remedy, problem=problem)
    return Subject(str(path), open_reader(path, fps=fps), path)


def _video_of(folder: RunFolder, config: RunConfig) -> Path:
    video = Path(video_of(folder, config.out or ".mp4"))
    if not os.path.exists(video):
        verb = "decode" if folder.has_latents() else "resume"
        remedy = f"{folder.command(verb)} makes it"
        raise UnusableVideo("run", folder.path, remedy, problem=f"is without its video {video.name}")
    return video


def _with_run(video: Path, folder: RunFolder, config: RunConfig, *, name: str) -> Subject:
    source = open_reader(video, fps=config.fps)
    record, recorded = folder.record() or {}, folder.borders()
    prompts = timed_prompts(config)
    if source.frames != config.frames:
        # a file of another video took the name: nothing that the run knows holds for it
        return Subject(name, source, video)
    kinds: list[tuple[BorderKind, list[int]]] = [
        ("rank", recorded.get("ranks", [])),
        ("join", recorded.get("joins", [])),
        ("prompt", [prompt.start for prompt in prompts[1:] if not prompt.cut]),
        ("scene", [prompt.start for prompt in prompts[1:] if prompt.cut]),
    ]
    borders = tuple(
        Border(frame, kind) for kind, frames in kinds for frame in frames if 0 < frame < source.frames
    )
    settings = {key: plain_text(value) for key, value in leaves(config).items() if value is not None}
    provenance = {key: str(record[key]) for key in PROVENANCE if key in record}
    return Subject(name, source, video, borders, prompts, config.loop, settings, provenance)
