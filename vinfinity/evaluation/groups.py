"""Which videos are compared with which: single videos, or folders whose videos have the same names."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from vinfinity.errors import InputError, VinfinityError
from vinfinity.evaluation.subject import (
    Subject,
    check_rate,
    find_subject,
    is_picture_folder,
    is_run,
    videos_in,
)
from vinfinity.media.reader import UnusableVideo
from vinfinity.system.files import missing_problem


@dataclass(frozen=True)
class Groups:
    """Videos to compare: single ones, or batches.

    paths: as the user named them. pairs: the names that batches share; empty for single videos. subjects: per group,
    one for a single video, those of `pairs` for a batch. left_out: the names that batches share but of which a video is
    of no use, with what is wrong. unpaired: videos whose names not all batches have.
    """

    paths: tuple[Path, ...]
    pairs: tuple[str, ...]
    subjects: tuple[tuple[Subject, ...], ...]
    left_out: Mapping[str, VinfinityError] = field(default_factory=dict)
    unpaired: tuple[str, ...] = ()


def find_groups(
    paths: Sequence[Path],
    *,
    fps: Fraction | int | None = None,
    borders: Sequence[int] = (),
    every: int | None = None,
) -> Groups:
    """Single videos, or folders with videos of equal names. fps, borders, every: see `find_subject`.

    Raises InputError if there is only one video, if sizes differ, or if a single video or all pairs are of no use.
    """
    names, grouped = _grouped(paths)
    found: dict[str, tuple[Subject, ...]] = {}
    left_out: dict[str, VinfinityError] = {}
    for name, counterparts in zip(names or ("",), zip(*grouped, strict=True), strict=True):
        try:
            subjects = tuple(
                find_subject(path, fps=fps, borders=borders, every=every) for path in counterparts
            )
        except UnusableVideo as error:
            if not names:
                raise
            left_out[name] = error
        else:
            _check_sizes(subjects)
            found[name] = subjects
    check_rate([subject for subjects in found.values() for subject in subjects], fps)
    if not found:
        raise next(iter(left_out.values()))
    unpaired = [str(path / name) for path in paths if names for name in videos_in(path) if name not in names]
    return Groups(
        tuple(paths),
        tuple(found) if names else (),
        tuple(zip(*found.values(), strict=True)),
        left_out,
        tuple(unpaired),
    )


def _grouped(paths: Sequence[Path]) -> tuple[tuple[str, ...], list[list[Path]]]:
    """Return the videos by group, with the names of pairs.

    Raises InputError if one does not exist, if there is only one, or if folders share no name or are mixed with single
    videos.
    """
    for path in paths:
        if not os.path.exists(path):
            raise InputError("compare", path, "check the path", problem=missing_problem(path))
    if len(paths) < 2:
        raise InputError(
            "compare", ", ".join(map(str, paths)), "name two or more", problem="is a single video"
        )
    batches = [path for path in paths if _is_batch(path)]
    if not batches:
        return (), [[path] for path in paths]
    if len(batches) < len(paths):
        other = next(path for path in paths if path not in batches)
        remedy = "compare folders with folders"
        raise InputError("compare", other, remedy, problem=f"is one video, but {batches[0]} holds many")
    names = [videos_in(path) for path in batches]
    shared = [name for name in names[0] if all(name in others for others in names[1:])]
    if not shared:
        problem = f"has no video of the same name as {batches[0]}"
        raise InputError("compare", batches[1], "make both with the same names and seeds", problem=problem)
    return tuple(shared), [[path / name for name in shared] for path in batches]


def _check_sizes(subjects: Sequence[Subject]) -> None:
    """Raise InputError if the frames of two videos differ in size."""
    first = subjects[0]
    for other in subjects[1:]:
        if other.source.size != first.source.size:
            one, two = ("x".join(map(str, subject.source.size)) for subject in (other, first))
            problem = f"has frames of {one}, and {first.name} of {two}"
            raise InputError("compare", other.name, "compare videos of one size", problem=problem)


def _is_batch(path: Path) -> bool:
    return path.is_dir() and not is_run(path) and not is_picture_folder(path)
