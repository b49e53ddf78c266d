"""Compare several videos: their figures, how far their frames differ, and batches by paired tests."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np

from vinfinity.evaluation.figures import FIGURES
from vinfinity.evaluation.result import Evaluation, rounded, rounded_all
from vinfinity.evaluation.statistics import Paired, paired_test

# of SSIM: side of the window, and the constants of its formula, as scikit-image has them
WINDOW = 7
K1, K2 = 0.01, 0.03
FULL_SCALE = 255.0


@dataclass(frozen=True)
class Fidelity:
    """How close a video is to another of the same size and length, frame by frame.

    psnr: PSNR of all frames together, in dB; infinite if they are equal. ssim: the mean over frames; None for frames
    smaller than 7x7 pixels. psnr_curve, ssim_curve: the values per frame.
    """

    psnr: float
    ssim: float | None
    psnr_curve: np.ndarray
    ssim_curve: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Videos, or batches of videos, against the first of them.

    names: the names of the videos or batches, as text that any terminal can show. groups: the evaluations of each; of
    one video, or of a batch in the order of `pairs`. pairs: the names of the videos that batches share, empty for
    single videos. fidelity: that of each video to its counterpart in the first group; None if sizes or lengths differ.
    tests: for each group but the first, by figure: the paired test of its difference from the first; empty for single
    videos. left_out: the names of pairs of which a video is damaged, with what is wrong. unpaired: videos whose names
    not all batches have.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[Evaluation, ...], ...]
    pairs: tuple[str, ...]
    fidelity: tuple[tuple[Fidelity | None, ...], ...]
    tests: tuple[Mapping[str, Paired], ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    unpaired: tuple[str, ...] = ()

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations of single videos, or of the first pair of a batch."""
        return [group[0] for group in self.groups]

    def differing_settings(self) -> dict[str, list[str]]:
        """Return the settings in which the runs differ, with the value of each video, empty where there is none.

        Their files differ anyway.
        """
        settings = [evaluation.subject.settings for evaluation in self.evaluations]
        keys = dict.fromkeys(itertools.chain.from_iterable(settings))
        values = {key: [one.get(key, "") for one in settings] for key in keys}
        return {key: row for key, row in values.items() if len({*row}) > 1 and key != "out"}

    def as_json(self) -> dict[str, Any]:
        """Everything but matrices, as JSON has it."""
        return {
            "names": list(self.names),
            "pairs": list(self.pairs),
            "left_out": dict(self.left_out),
            "unpaired": list(self.unpaired),
            "videos": [[evaluation.as_json() for evaluation in group] for group in self.groups],
            "fidelity": [[_fidelity_json(one) for one in group] for group in self.fidelity],
            "tests": [
                {name: rounded_all(asdict(test)) for name, test in tests.items()} for tests in self.tests
            ],
            "settings": self.differing_settings(),
        }


def compare_evaluations(
    names: Sequence[str],
    groups: Sequence[Sequence[Evaluation]],
    pairs: Sequence[str],
    *,
    left_out: Mapping[str, str],
    unpaired: Sequence[str],
) -> Comparison:
    """Read the frames of all videos but the first once more, along with those of the first."""
    first = groups[0]
    fidelity = [
        tuple(find_fidelity(one, other) for one, other in zip(first, group, strict=True))
        for group in groups[1:]
    ]
    tests = [_tests(first, group) if pairs else {} for group in groups[1:]]
    return Comparison(
        tuple(names),
        tuple(map(tuple, groups)),
        tuple(pairs),
        tuple(fidelity),
        tuple(tests),
        left_out,
        tuple(unpaired),
    )


def _tests(first: Sequence[Evaluation], group: Sequence[Evaluation]) -> dict[str, Paired]:
    tests = {}
    for name in FIGURES:
        both = [(a.figures.get(name), b.figures.get(name)) for a, b in zip(first, group, strict=True)]
        differences = [b - a for a, b in both if a is not None and b is not None]
        test = paired_test(differences)
        if test is not None:
            tests[name] = test
    return tests


# ---- frames against frames ----


def find_fidelity(reference: Evaluation, other: Evaluation) -> Fidelity | None:
    """PSNR and SSIM of a video against another. None if their sizes or lengths differ.

    The lengths are those that were measured: a file that was trimmed may say that it holds more frames than it shows.
    """
    one, two = reference.subject.source, other.subject.source
    if (one.size, reference.frames) != (two.size, other.frames):
        return None
    errors, similarities = [], []
    for a, b in zip(one, two, strict=True):
        difference = cv2.absdiff(np.ascontiguousarray(a), np.ascontiguousarray(b))
        errors.append(float((difference.astype(np.float64) ** 2).mean()))
        similarities.append(structural_similarity(a, b))
    curve = np.array(similarities)
    return Fidelity(
        _psnr(float(np.mean(errors))),
        float(curve.mean()) if np.isfinite(curve).all() else None,
        np.array([_psnr(error) for error in errors]),
        curve,
    )


def structural_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """SSIM of two frames (h, w, 3) uint8, the mean over channels, as scikit-image computes it by default.

    Uniform windows of 7x7, sample covariance, without the border that windows reach beyond. NaN for smaller frames.
    """
    height, width = one.shape[:2]
    if min(height, width) < WINDOW:
        return float("nan")
    a, b = one.astype(np.float64), other.astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (WINDOW, WINDOW), borderType=cv2.BORDER_REFLECT)

    mean_a, mean_b = mean(a), mean(b)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    variances = sample * (mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2)
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (K1 * FULL_SCALE) ** 2, (K2 * FULL_SCALE) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (variances + c2)
    edge = WINDOW // 2
    return float(similarity[edge : height - edge, edge : width - edge].mean())


def _psnr(error: float) -> float:
    return float("inf") if error == 0 else float(10 * np.log10(FULL_SCALE**2 / error))


def _fidelity_json(fidelity: Fidelity | None) -> dict[str, Any] | None:
    if fidelity is None:
        return None
    return {
        # JSON has no infinity
        "identical": fidelity.psnr == float("inf"),
        "psnr": rounded(fidelity.psnr),
        "ssim": rounded(fidelity.ssim),
        "psnr_curve": [rounded(value) for value in fidelity.psnr_curve],
        "ssim_curve": [rounded(value) for value in fidelity.ssim_curve],
    }
