"""`vinfinity.evaluate` and `vinfinity.compare`, which import what they need only when they are called."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vinfinity.errors import DamagedError, InputError, VinfinityError, escaped
from vinfinity.evaluation.extras import check_extras
from vinfinity.evaluation.groups import Groups, find_groups
from vinfinity.evaluation.result import Evaluation, short_names
from vinfinity.evaluation.subject import FramesInMemory, Subject, check_rate, find_subject
from vinfinity.system.folders import expanded
from vinfinity.system.progress import Progress

if TYPE_CHECKING:
    from vinfinity.evaluation.compare import Comparison
    from vinfinity.evaluation.picture import Picture
    from vinfinity.evaluation.preview import Preview


def evaluate(
    video: str | Path | np.ndarray | FramesInMemory,
    *,
    fps: Fraction | int | None = None,
    borders: Sequence[int] = (),
    every: int | None = None,
    prompt: str | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """Measure a video: motion, flicker, seams, cuts, drift, repetition, frozen spans, and VBench's consistency.

    video: a video file, a run folder, a folder of PNG, the result of `vinfinity.generate`, or an array (f, height,
    width, 3) uint8. fps: of an array, or of a folder of PNG without a run; other videos have a rate of their own.
    borders: frames at which to look for seams, in addition to the run's own. every: look every this many frames, too.
    clip, dino: folders of weights in transformers' layout, for the figures `consistency`. prompt: what a video without
    a run shows. device: of CLIP and DINO.

    Needs the extra `evaluate`, and `consistency` for weights. Frames are read one at a time.
    Raises InputError, and DamagedError where the file cannot be decoded.
    """
    subject = find_subject(video, fps=fps, borders=borders, every=every)
    check_rate([subject], fps)
    check_extras()
    measured = measure_all([subject], prompt=prompt, clip=clip, dino=dino, device=device, shown=False)
    return measured.evaluations[0]


def compare(
    *videos: str | Path,
    fps: Fraction | int | None = None,
    borders: Sequence[int] = (),
    every: int | None = None,
    prompt: str | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    device: str = "auto",
) -> "Comparison":
    """Compare videos of one size with the first of them, or batches with the first batch.

    videos: two or more video files or run folders; or folders with videos of equal names, which are paired, and whose
    differences are tested. Other arguments: see `evaluate`. PSNR and SSIM are computed where lengths are equal. Pairs
    of which a video is damaged are left out; the result's `left_out` names them.

    Needs the extra `evaluate`. Raises InputError, and DamagedError where a single video or all pairs cannot
    be decoded.
    """
    groups = find_groups(
        [expanded(video, field="video") for video in videos], fps=fps, borders=borders, every=every
    )
    check_extras()
    result, _ = compare_groups(groups, prompt=prompt, clip=clip, dino=dino, device=device, shown=False)
    return result


@dataclass
class Measured:
    """Videos that were measured.

    previews: the previews of these videos, for a report. sheets: their contact sheets as data URLs. failures: what is
    wrong with the others, by the name of the video or of the pair that is left out.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    previews: "list[Preview]" = field(default_factory=list)
    sheets: list[str] = field(default_factory=list)
    failures: dict[str, VinfinityError] = field(default_factory=dict)


def measure_all(
    subjects: Sequence[Subject],
    *,
    prompt: str | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    device: str = "auto",
    shows: Literal["nothing", "videos", "sheets"] = "nothing",
    shown: bool = True,
    failures: Mapping[str, VinfinityError] | None = None,
) -> Measured:
    """Videos through all measures, one after the other.

    shows: what a report shows of each video: a copy of it, or a contact sheet. shown: progress. failures: what was
    wrong with other videos; a video that cannot be read is then reported as these are, and the others are measured.
    None: it is an error.

    Raises InputError, and DamagedError where a file cannot be decoded.
    """
    from vinfinity.evaluation.consistency import Networks
    from vinfinity.evaluation.evaluate import measure
    from vinfinity.evaluation.preview import PreviewMaker, SheetMaker

    if prompt is not None and clip is None:
        remedy = "name its weights by --clip, or leave the prompt out"
        raise InputError("prompt", prompt, remedy, problem="has no effect without CLIP")
    if device != "auto" and clip is None and dino is None:
        remedy = "name their weights by --clip or --dino, or leave the device out"
        raise InputError("device", device, remedy, problem="has no effect without CLIP or DINO")
    networks = Networks.open(clip=clip, dino=dino, device=device)
    measured = Measured(failures=dict(failures or {}))
    with Progress(enabled=shown) as progress:
        for failure in measured.failures.values():
            progress.warn(f"{failure.message}; measuring the others")
        for subject in subjects:
            source = subject.source
            watch: Callable[[Picture], None] | None = None
            if shows == "videos":
                preview = PreviewMaker(size=source.size, frames=source.frames, fps=source.fps)
                watch = preview.add
            elif shows == "sheets":
                sheet = SheetMaker(frames=source.frames)
                watch = sheet.add
            try:
                found = measure(subject, networks=networks, prompt=prompt, progress=progress, watch=watch)
            except (InputError, DamagedError) as error:
                if failures is None:
                    raise
                progress.warn(f"{error.message}; measuring the others")
                measured.failures[subject.name] = error
            else:
                measured.evaluations.append(found)
                if shows == "videos":
                    measured.previews.append(preview.result())
                elif shows == "sheets":
                    measured.sheets.append(sheet.result())
    return measured


def compare_groups(
    groups: Groups,
    *,
    prompt: str | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    device: str = "auto",
    reported: bool = False,
    shown: bool = True,
) -> tuple["Comparison", Measured]:
    """Videos against those of the first group. reported: make what a report shows of them, too. shown: progress.

    Pairs of which a video cannot be decoded are left out. Raises DamagedError if a single video or all pairs cannot.
    """
    from vinfinity.evaluation.compare import compare_evaluations

    flat = [subject for group in groups.subjects for subject in group]
    shows: Literal["nothing", "videos", "sheets"] = "nothing"
    if reported:
        shows = "sheets" if groups.pairs else "videos"
    measured = measure_all(
        flat,
        prompt=prompt,
        clip=clip,
        dino=dino,
        device=device,
        shows=shows,
        shown=shown,
        failures=groups.left_out if groups.pairs else None,
    )
    if groups.pairs:
        measured, pairs = _whole_pairs(groups, measured)
        names = [escaped(str(path)) for path in groups.paths]
    else:
        pairs, names = (), short_names(measured.evaluations)
    size = len(measured.evaluations) // len(groups.paths)
    split = [measured.evaluations[number * size :][:size] for number in range(len(groups.paths))]
    left_out = {name: error.message for name, error in measured.failures.items()}
    return compare_evaluations(names, split, pairs, left_out=left_out, unpaired=groups.unpaired), measured


def _whole_pairs(groups: Groups, measured: Measured) -> tuple[Measured, tuple[str, ...]]:
    """Measure the pairs whose videos can all be measured, and return them with their names.

    Raises the error of one of the others if there is no such pair.
    """
    failures = dict(groups.left_out)
    for group in groups.subjects:
        for name, subject in zip(groups.pairs, group, strict=True):
            if subject.name in measured.failures:
                failures.setdefault(name, measured.failures[subject.name])
    pairs = tuple(name for name in groups.pairs if name not in failures)
    if not pairs:
        raise next(iter(failures.values()))
    of_videos = [
        name
        for group in groups.subjects
        for name, subject in zip(groups.pairs, group, strict=True)
        if subject.name not in measured.failures
    ]
    whole = [name in pairs for name in of_videos]
    kept = Measured(list(itertools.compress(measured.evaluations, whole)), failures=failures)
    kept.sheets = list(itertools.compress(measured.sheets, whole))
    return kept, pairs
