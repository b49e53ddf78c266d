"""Run a video through all measures, in one pass over its frames."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from vinfinity.errors import escaped
from vinfinity.evaluation.appearance import Appearance, AppearanceMeasure
from vinfinity.evaluation.consistency import FeatureMeasure, Features, Networks
from vinfinity.evaluation.cuts import CutMeasure
from vinfinity.evaluation.differences import DifferenceMeasure, Differences
from vinfinity.evaluation.motion import Motion, MotionMeasure
from vinfinity.evaluation.picture import Picture
from vinfinity.evaluation.repetition import Repetition, RepetitionMeasure
from vinfinity.evaluation.result import Evaluation
from vinfinity.evaluation.statistics import find_trend
from vinfinity.evaluation.subject import TWO_FRAMES, Subject
from vinfinity.media.curves import chance, find_seams
from vinfinity.media.reader import UnusableVideo
from vinfinity.system.progress import Progress

# errors are shown in thousandths of full scale
THOUSANDTHS = 1000.0


def measure(
    subject: Subject,
    *,
    networks: "Networks",
    prompt: str | None = None,
    progress: Progress | None = None,
    watch: Callable[[Picture], None] | None = None,
) -> Evaluation:
    """Measure a video in one pass. watch: called with every frame as well. Raises InputError, DamagedError."""
    fps = subject.source.fps
    differences, appearance, motion = DifferenceMeasure(), AppearanceMeasure(), MotionMeasure()
    cuts, repetition = CutMeasure(fps), RepetitionMeasure()
    features = FeatureMeasure(networks)
    measures = (differences, appearance, motion, cuts, repetition, features)
    frames: Iterable[np.ndarray] = subject.source
    if progress is not None:
        label = f"measuring {escaped(Path(subject.name).name)}"
        frames = progress.track(frames, total=subject.source.frames, label=label, unit="frame")
    count = 0
    for rgb in frames:
        picture = Picture(rgb, count)
        for one in measures:
            one.add(picture)
        if watch is not None:
            watch(picture)
        count += 1
    if count < 2:
        raise UnusableVideo("video", subject.name, TWO_FRAMES, problem="has one frame only")
    texts, found = _texts(subject, count, prompt), cuts.result()
    return _evaluation(
        subject,
        count,
        differences=differences.result(fps=float(fps)),
        appearance=appearance.result(),
        motion=motion.result(),
        cuts=tuple(cut for cut in found if cut not in subject.scenes),
        repetition=repetition.result(fps=float(fps)),
        features=features.result(texts, fps=float(fps), cuts=(*found, *sorted(subject.scenes))),
    )


def _texts(subject: Subject, frames: int, prompt: str | None) -> list[str] | None:
    """Return the prompt in force at each frame; None where none is known."""
    if prompt is not None:
        return [prompt] * frames
    if not subject.prompts:
        return None
    starts = [entry.start for entry in subject.prompts] + [frames]
    spans = itertools.pairwise(starts)
    return [entry.text for entry, (a, b) in zip(subject.prompts, spans, strict=True) for _ in range(a, b)]


def _evaluation(
    subject: Subject,
    frames: int,
    *,
    differences: Differences,
    appearance: Appearance,
    motion: Motion,
    cuts: tuple[int, ...],
    repetition: Repetition,
    features: Features,
) -> Evaluation:
    fps = float(subject.source.fps)
    seams = find_seams(differences.difference, subject.seams, without=subject.scenes)
    warped = find_seams(motion.warp_error, subject.seams, without=subject.scenes)
    means = motion.means(without=subject.scenes | {*cuts})
    drift = appearance.drift
    frozen = [len(span) for span in differences.frozen]
    figures: dict[str, float | None] = {
        "motion.length": means["length"],
        "motion.moving": means["moving"],
        "motion.warp_error": _scaled(means["warp_error"]),
        "motion.warp_over_motion": _scaled(means["warp_over_motion"]),
        "flicker.score": differences.flicker_score,
        "flicker.pulsing": appearance.mean_pulsing(without=subject.scenes),
        "seams.ratio": None if seams is None else seams.ratio,
        "seams.worst": None if seams is None else seams.worst,
        "seams.warp_ratio": None if warped is None else warped.ratio,
        "seams.chance": None if seams is None else chance(differences.difference, seams),
        "cuts.count": float(len(cuts)),
        **{f"drift.{name}": value for name, value in drift.items()},
        "drift.largest": _largest(drift),
        "repetition.strength": repetition.strength,
        "repetition.period": None if repetition.period is None else repetition.period / fps,
        "repetition.returning": repetition.returning,
        "closing.ratio": differences.closing_ratio,
        "frozen.share": sum(frozen) / frames * 100,
        "frozen.longest": max(frozen, default=0) / fps,
        **features.figures,
    }
    curves = {
        "difference": differences.difference,
        "motion": motion.length,
        "warp_error": motion.warp_error * THOUSANDTHS,
        "brightness": appearance.brightness,
        "sharpness": appearance.sharpness,
        "saturation": appearance.saturation,
        "colour": appearance.colour_shift,
        "pulsing": appearance.pulsing,
        **features.curves,
    }
    found = {
        name: find_trend(curves[name])
        for name in ("sharpness", "brightness", "saturation", "motion", *features.curves)
    }
    return Evaluation(
        subject=subject,
        frames=frames,
        size=subject.source.size,
        fps=subject.source.fps,
        figures=figures,
        curves=curves,
        seams=seams,
        cuts=cuts,
        frozen=differences.frozen,
        trends={name: trend for name, trend in found.items() if trend is not None},
        autocorrelation=repetition.autocorrelation,
        matrix=repetition.matrix,
    )


def _largest(drift: Mapping[str, float | None]) -> float | None:
    """Return drifts in percent of the first sharpness, of 255 levels, of 100 points and of ΔE 100."""
    percent = {"sharpness": 1.0, "brightness": 100 / 255, "saturation": 1.0, "colour": 1.0}
    values = [abs(value) * scale for name, scale in percent.items() if (value := drift[name]) is not None]
    return max(values, default=None)


def _scaled(value: float | None) -> float | None:
    return None if value is None else value * THOUSANDTHS
