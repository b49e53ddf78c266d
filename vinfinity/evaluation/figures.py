"""Every figure of a video, declared once: its name, title, unit and meaning, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# by name; None where a figure has no meaning, such as seams without borders
Figures = Mapping[str, float | None]


@dataclass(frozen=True)
class Figure:
    """One figure. better: which way; None if that depends on the prompt. digits: those shown after the point.

    beside: a figure of motion that is always shown with this one, because still pictures score best in it.
    """

    name: str
    title: str
    unit: str
    meaning: str
    better: Literal["low", "high"] | None = None
    digits: int = 2
    beside: str | None = None

    def shown(self, value: float | None) -> str:
        """Return a value as text, `-` for None."""
        if value is None:
            return "-"
        number = self.number(value)
        space = "" if self.unit.startswith("e") else " "
        return f"{number}{space}{self.unit}".rstrip()

    def number(self, value: float | None) -> str:
        """Return a value without its unit."""
        return "-" if value is None else f"{value:,.{self.digits}f}"


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("motion.length", "motion", "px/frame", "Mean length of the optical flow per frame."),
        Figure(
            "motion.moving",
            "moving pixels",
            "%",
            "Share of pixels that move by more than 1/256 of the short side per frame.",
            digits=1,
        ),
        Figure(
            "motion.warp_error",
            "warp error",
            "e-3",
            "Mean squared difference between frames after motion is undone, in thousandths of full scale.",
            better="low",
            beside="motion.length",
        ),
        Figure(
            "motion.warp_over_motion",
            "warp error / motion",
            "e-3",
            "Warp error divided by the mean squared flow, in units of 1/256 of the short side (MAWE).",
            better="low",
            digits=3,
        ),
        Figure(
            "flicker.score",
            "flicker (VBench)",
            "",
            "(255 - mean difference of adjacent frames) / 255: VBench's temporal flickering.",
            better="high",
            digits=4,
            beside="motion.length",
        ),
        Figure(
            "flicker.pulsing",
            "pulsing",
            "levels",
            "How far the mean colour of a frame is from the middle of its neighbours': flicker without motion.",
            better="low",
        ),
        Figure(
            "seams.ratio",
            "seam ratio",
            "",
            "Mean difference of adjacent frames at borders, divided by that elsewhere; 1 is seamless.",
            better="low",
        ),
        Figure(
            "seams.worst",
            "worst seam",
            "",
            "The highest ratio of a single border, to elsewhere.",
            better="low",
        ),
        Figure(
            "seams.warp_ratio",
            "seam ratio, motion undone",
            "",
            "The same of the warp error, which fast motion does not hide.",
            better="low",
        ),
        Figure(
            "seams.chance",
            "chance of such seams",
            "",
            "Share of random pairs of frames that differ as much on average: small if borders stand out.",
            digits=3,
        ),
        Figure(
            "cuts.count",
            "cuts",
            "",
            "Cuts that were not asked for, by PySceneDetect.",
            better="low",
            digits=0,
        ),
        Figure(
            "drift.sharpness",
            "drift of sharpness",
            "%",
            "Last 15 % against first 15 % of the video.",
            digits=1,
        ),
        Figure("drift.brightness", "drift of brightness", "levels", "The same, of the mean luma (0 to 255)."),
        Figure(
            "drift.saturation", "drift of saturation", "points", "The same, of the saturation (0 to 100)."
        ),
        Figure(
            "drift.colour",
            "drift of colour",
            "ΔE",
            "Distance of mean colours, CIE76; 2 is visible.",
            better="low",
        ),
        Figure(
            "drift.histogram",
            "drift of histogram",
            "%",
            "Share of the colour histogram that would have to move.",
            better="low",
            digits=1,
        ),
        Figure(
            "drift.largest",
            "largest drift",
            "%",
            "The largest of the drifts, each in percent: of the first sharpness, of 255 levels, of 100 points, "
            "of ΔE 100.",
            better="low",
            digits=1,
        ),
        Figure(
            "repetition.strength",
            "repetition",
            "",
            "Autocorrelation at the strongest period: 1 repeats exactly.",
            better="low",
        ),
        Figure("repetition.period", "period", "s", "Length of that period."),
        Figure(
            "repetition.returning",
            "returning frames",
            "%",
            "Share of frames that were seen before, at least a second earlier.",
            better="low",
            digits=1,
        ),
        Figure(
            "closing.ratio",
            "closing seam",
            "",
            "Difference of last and first frame, divided by that of adjacent frames; about 1 in a loop.",
        ),
        Figure(
            "frozen.share",
            "frozen",
            "%",
            "Share of the video in frozen spans of half a second or more.",
            "low",
            1,
        ),
        Figure("frozen.longest", "longest frozen span", "s", "Length of the longest frozen span.", "low"),
        Figure(
            "consistency.subject",
            "subject consistency",
            "",
            "VBench's, by DINO features.",
            "high",
            4,
            "motion.length",
        ),
        Figure(
            "consistency.subject_long",
            "subject consistency, long form",
            "",
            "Half within clips of two seconds, half between their first frames, without VBench's mapping.",
            "high",
            4,
            "motion.length",
        ),
        Figure(
            "consistency.background",
            "background consistency",
            "",
            "VBench's, by CLIP features.",
            "high",
            4,
            "motion.length",
        ),
        Figure(
            "consistency.background_long",
            "background consistency, long form",
            "",
            "Half within clips of two seconds, half between their first frames, without VBench's mapping.",
            "high",
            4,
            "motion.length",
        ),
        Figure(
            "consistency.prompt",
            "agreement with the prompt",
            "",
            "Mean cosine of CLIP features of each frame and of the prompt in force.",
            "high",
            4,
            "motion.length",
        ),
    )
}

# what a curve shows: (title, unit)
CURVES = {
    "difference": ("difference of adjacent frames", "levels"),
    "motion": ("motion", "px/frame"),
    "warp_error": ("warp error", "e-3"),
    "brightness": ("brightness", "levels"),
    "sharpness": ("sharpness", "levels"),
    "saturation": ("saturation", "%"),
    "colour": ("colour shift", "ΔE"),
    "pulsing": ("pulsing", "levels"),
    "subject": ("similarity to the first frame (DINO)", ""),
    "background": ("similarity to the first frame (CLIP)", ""),
    "prompt": ("agreement with the prompt", ""),
}
