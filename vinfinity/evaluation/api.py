"""`vinfinity.evaluate` and `vinfinity.compare`: they import what they need when they are called."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vinfinity.evaluation.extras import check_extras
from vinfinity.evaluation.groups import Groups, find_groups
from vinfinity.evaluation.result import Evaluation, short_names
from vinfinity.evaluation.subject import FramesInMemory, Subject, find_subject
from vinfinity.system.folders import expanded
from vinfinity.system.progress import Progress

if TYPE_CHECKING:
    from vinfinity.evaluation.compare import Comparison
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
    width, 3) uint8. fps: of an array or a folder of PNG. borders: frames at which to look for seams, beside those that
    the run knows; every: look there every so many frames. clip, dino: folders of weights in transformers' layout, for
    the figures `consistency`. prompt: what a video without a run shows. device: of CLIP and DINO.

    Needs the extra `vinfinity[evaluate]`, and `vinfinity[consistency]` for weights. Frames are read one at a time.
    Raises InputError, and DamagedError where the file cannot be decoded.
    """
    subject = find_subject(video, fps=fps, borders=borders, every=every)
    check_extras()
    [result], _ = measure_all([subject], prompt=prompt, clip=clip, dino=dino, device=device, shown=False)
    return result


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
    differences are tested. Other arguments: see `evaluate`. PSNR and SSIM are computed where lengths are equal.

    Needs the extra `vinfinity[evaluate]`. Raises InputError, and DamagedError where a file cannot be decoded.
    """
    groups = find_groups(
        [expanded(video, field="video") for video in videos], fps=fps, borders=borders, every=every
    )
    check_extras()
    result, _ = compare_groups(groups, prompt=prompt, clip=clip, dino=dino, device=device, shown=False)
    return result


def measure_all(
    subjects: Sequence[Subject],
    *,
    prompt: str | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    device: str = "auto",
    previewed: bool = False,
    shown: bool = True,
) -> tuple[list[Evaluation], "list[Preview]"]:
    """Videos through all measures, one after the other. previewed: make previews for a report, too. shown: progress."""
    from vinfinity.evaluation.consistency import Networks
    from vinfinity.evaluation.evaluate import measure
    from vinfinity.evaluation.preview import Preview

    networks = Networks.open(clip=clip, dino=dino, device=device)
    evaluations, previews = [], []
    with Progress(enabled=shown) as progress:
        for subject in subjects:
            source, watch = subject.source, None
            if previewed:
                preview = Preview(size=source.size, frames=source.frames, fps=source.fps)
                previews.append(preview)
                watch = preview.add
            evaluations.append(
                measure(subject, networks=networks, prompt=prompt, progress=progress, watch=watch)
            )
    return evaluations, previews


def compare_groups(
    groups: Groups,
    *,
    prompt: str | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    device: str = "auto",
    previewed: bool = False,
    shown: bool = True,
) -> tuple["Comparison", "list[Preview]"]:
    """Videos against those of the first group. previewed, shown: see `measure_all`."""
    from vinfinity.evaluation.compare import compare_evaluations

    flat = [subject for group in groups.subjects for subject in group]
    measured, previews = measure_all(
        flat, prompt=prompt, clip=clip, dino=dino, device=device, previewed=previewed, shown=shown
    )
    size = len(groups.subjects[0])
    split = [measured[start : start + size] for start in range(0, len(measured), size)]
    names = [str(path) for path in groups.paths] if groups.pairs else short_names(measured)
    return compare_evaluations(names, split, groups.pairs), previews
