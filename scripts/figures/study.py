"""The study of long videos: its table of means, of paired differences, and a plot of them, from the lines of its CSV;
and the table of further schedules of biases.

`python -m scripts.figures` writes them into docs/proof/long-video.md and docs/images, and `python
benchmarks/long_video.py --summary` prints them while the study is running.

Videos of one scene resemble each other, whatever their seeds, so a scene counts once: by the mean of its videos.
Settings are compared in the scenes and seeds that both have.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from scripts.figures import marked
from vinfinity.evaluation.figures import FIGURES, Figure
from vinfinity.evaluation.statistics import Paired, bootstrap_interval, paired_test

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data" / "long-video.csv"
SCHEDULES = ROOT / "docs" / "data" / "long-video-schedules.csv"
PAGE = ROOT / "docs" / "proof" / "long-video.md"
BASE, UNBIASED = "dual", "unbiased"
# what the study is to have: lengths, and videos of each setting at the shortest
LENGTHS, FULL = (96, 320, 960), 48
# intervals and p-values say little about fewer scenes
FEW = 6
SIGNIFICANT = 0.05
# of the recogniser, which knows the world that `mini` was trained on
READ = {
    figure.name: figure
    for figure in (
        Figure("read.right", "as the prompt says", "", "Share of clips and aspects that agree.", "high", 3),
        Figure("read.steady", "steady frames", "", "Share of frames with one subject.", "high", 3),
        Figure("read.same", "same as at the start", "", "Share of clips that look alike.", "high", 3),
    )
}
SHOWN = tuple(READ.values()) + tuple(
    FIGURES[name]
    for name in (
        "motion.length",
        "motion.warp_over_motion",
        "flicker.pulsing",
        "seams.ratio",
        "drift.largest",
        "repetition.strength",
    )
)

Row = Mapping[str, str]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file of the study; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def holm(chances: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that 5 % is the chance of one false finding among all (Holm 1979)."""
    adjusted, highest = [1.0] * len(chances), 0.0
    for rank, at in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[at]))
        adjusted[at] = highest
    return adjusted


@dataclass(frozen=True)
class Mean:
    """A mean over scenes with its bootstrap interval of 95 %; None where there is one scene only."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Group:
    """The videos of one length, made with the same number of steps, the same guidance and the same weights."""

    frames: int
    steps: int
    guidance: float
    weights: str
    rows: Sequence[Row]

    @cached_property
    def settings(self) -> list[str]:
        """The settings, the base first."""
        names = dict.fromkeys(row["setting"] for row in self.rows)
        return [name for name in names if name == BASE] + [name for name in names if name != BASE]

    @cached_property
    def _videos(self) -> dict[str, dict[tuple[str, str], Row]]:
        """By setting, then by scene and seed."""
        found: dict[str, dict[tuple[str, str], Row]] = {name: {} for name in self.settings}
        for row in self.rows:
            found[row["setting"]][row["scene"], row["seed"]] = row
        return found

    def count(self, setting: str) -> int:
        """Return how many videos a setting has."""
        return len(self._videos[setting])

    def scenes(self, setting: str) -> int:
        """Return how many prompts they show."""
        return len({scene for scene, _ in self._videos[setting]})

    @cached_property
    def processor(self) -> str:
        """The one that made most of the videos: times on others cannot be compared with its."""
        return Counter(row["processor"] for row in self.rows).most_common(1)[0][0]

    def seconds(self, setting: str) -> float | None:
        """Return the median time of a video on one core of `processor`; None if that made no video of the setting."""
        own = [row for row in self._videos[setting].values() if row["processor"] == self.processor]
        return float(np.median([float(row["seconds"]) for row in own])) if own else None

    @property
    def hours(self) -> dict[str, float]:
        """The time of all videos by processor, without measuring them."""
        found: dict[str, float] = {}
        for row in self.rows:
            found[row["processor"]] = found.get(row["processor"], 0.0) + float(row["seconds"]) / 3600
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    def mean(self, setting: str, figure: str) -> Mean | None:
        """None if no video has the figure."""
        own = self._videos[setting]
        values = _by_scene({video: float(row[figure]) for video, row in own.items() if row.get(figure)})
        if not len(values):
            return None
        few = len(values) < 2
        interval = None if few else bootstrap_interval(values, np.random.default_rng(0))
        return Mean(float(values.mean()), interval)

    def difference(self, setting: str, figure: str, *, base: str = BASE) -> Paired | None:
        """Return a setting's figure less the base's, over scenes; None for fewer than two scenes that both have."""
        own, other = self._videos[setting], self._videos.get(base, {})
        differences = {
            video: float(row[figure]) - float(other[video][figure])
            for video, row in own.items()
            if row.get(figure) and video in other and other[video].get(figure)
        }
        return paired_test(_by_scene(differences).tolist())

    @cached_property
    def differences(self) -> dict[tuple[str, str], Paired]:
        """By setting and figure, for all that are shown."""
        cells = [(name, figure.name) for name in self.settings if name != BASE for figure in SHOWN]
        return {cell: test for cell in cells if (test := self.difference(*cell)) is not None}

    @cached_property
    def holding(self) -> set[tuple[str, str]]:
        """The differences that are larger than chance explains, all tests of this group considered."""
        adjusted = holm([test.p for test in self.differences.values()])
        return {cell for cell, p in zip(self.differences, adjusted, strict=True) if p < SIGNIFICANT}

    @property
    def image(self) -> str:
        """The name of the plot."""
        return f"long-video-{self.frames}-frames-{self.steps}-steps-guidance-{self.guidance:g}-{self.weights}.svg"

    @property
    def plotted(self) -> bool:
        """Whether there are enough scenes for a plot."""
        return any(test.pairs >= FEW for test in self.differences.values())


def _by_scene(values: Mapping[tuple[str, str], float]) -> np.ndarray:
    """Return the mean of each scene. values: by scene and seed."""
    scenes = dict.fromkeys(scene for scene, _ in values)
    return np.array(
        [np.mean([value for (of, _), value in values.items() if of == scene]) for scene in scenes]
    )


def groups(rows: Sequence[Row]) -> list[Group]:
    """Lines by length, steps, guidance and weights: others are never averaged or compared."""
    found: dict[tuple[int, int, float, str], list[Row]] = {}
    for row in rows:
        key = int(row["frames"]), int(row["steps"]), float(row["guidance"]), row["weights"]
        found.setdefault(key, []).append(row)
    return [Group(*key, found[key]) for key in sorted(found)]


# ---- tables ----


def summary(rows: Sequence[Row]) -> str:
    """Everything about the lines, as Markdown: counts, means, differences, plots, and what is missing."""
    parts = [_missing(rows)]
    for group in groups(rows):
        parts += [
            _heading(group),
            _introduced(group),
            _means(group),
        ]
        if group.differences:
            parts += [_explained(group), _differences(group)]
        if group.plotted:
            about = f"Differences from {BASE} with their intervals, {group.frames} frames"
            parts.append(f"![{about}](../images/{group.image})")
    return "\n\n".join(part for part in parts if part)


def _missing(rows: Sequence[Row]) -> str:
    lines = []
    for length in LENGTHS:
        if not any(int(row["frames"]) == length for row in rows):
            lines.append(f"no video of {length} frames was made")
    short = [
        f"{group.frames} frames and {group.steps} steps have {_numbers(counts)} of {FULL} videos a setting"
        for group in groups(rows)
        if group.frames == LENGTHS[0]
        and min(counts := [group.count(setting) for setting in group.settings]) < FULL
    ]
    found = short + lines
    return f"**The study is not complete**: {'; '.join(found)}." if found else ""


def _numbers(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _heading(group: Group) -> str:
    videos, scenes = len(group.rows), max(map(group.scenes, group.settings))
    cost = " and ".join(f"{hours:.1f} hours of one core of {name}" for name, hours in group.hours.items())
    text = (
        f"### {group.frames} frames, {group.steps} steps, guidance {group.guidance:g}, weights {group.weights}\n\n"
        f"{_counted(videos, 'video')} of {_counted(scenes, 'prompt')} with {_counted(len(group.settings), 'setting')}; "
        f"{cost}."
    )
    if scenes < FEW:
        text += f" **Fewer than {FEW} prompts: read nothing into differences.**"
    return text


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _introduced(group: Group) -> str:
    times = "" if len(group.hours) == 1 else f" Seconds are those on {group.processor}."
    if max(map(group.scenes, group.settings)) < 2:
        return f"The figures of the one prompt, without intervals.{times}"
    return f"Means, with their bootstrap intervals of 95 % over prompts.{times}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def _means(group: Group) -> str:
    lines = []
    for setting in group.settings:
        cells = [_mean_cell(group.mean(setting, figure.name), figure) for figure in SHOWN]
        seconds = group.seconds(setting)
        time = "-" if seconds is None else f"{seconds:.0f}"
        lines.append([f"`{setting}`", str(group.count(setting)), time, *cells])
    return _table(["setting", "videos", "core s", *map(column_title, SHOWN)], lines)


def _mean_cell(mean: Mean | None, figure: Figure) -> str:
    if mean is None:
        return "-"
    value = figure.number(mean.value)
    return value if mean.interval is None else f"{value} ({_between(*mean.interval, figure)})"


def _explained(group: Group) -> str:
    return (
        f"Differences from `{BASE}`, paired by prompt and seed, with their intervals. Bold ones hold against chance "
        f"(p < {SIGNIFICANT:g} after Holm's correction for all {len(group.differences)} tests of the table)."
    )


def _differences(group: Group) -> str:
    lines = []
    for setting in group.settings:
        if setting == BASE:
            continue
        tests = [group.differences.get((setting, figure.name)) for figure in SHOWN]
        pairs = max((test.pairs for test in tests if test is not None), default=0)
        cells = [
            _difference_cell(test, figure, holds=(setting, figure.name) in group.holding)
            for test, figure in zip(tests, SHOWN, strict=True)
        ]
        lines.append([f"`{setting}`", str(pairs), *cells])
    return _table(["setting", "prompts", *map(column_title, SHOWN)], lines)


def _difference_cell(test: Paired | None, figure: Figure, *, holds: bool) -> str:
    if test is None:
        return "-"
    text = f"{test.mean:+.{figure.digits}f} ({_between(test.low, test.high, figure, sign='+')})"
    return f"**{text}**" if holds else text


def _between(low: float, high: float, figure: Figure, *, sign: str = "") -> str:
    return f"{low:{sign}.{figure.digits}f} to {high:{sign}.{figure.digits}f}"


def column_title(figure: Figure) -> str:
    """Return a figure with its unit, and an arrow to what is better."""
    better = {"high": " ↑", "low": " ↓", None: ""}[figure.better]
    return f"{figure.title}{f', {figure.unit}' if figure.unit else ''}{better}"


def schedules(rows: Sequence[Row], study: Sequence[Row]) -> str:
    """Return the table of schedules between the paper's and none. rows: of their videos, all of one length.

    study: lines of the study, of which those of the same scenes and seeds count.
    """
    made = {(row["scene"], row["seed"]) for row in rows}
    ends = [
        row for row in study if row["setting"] in (BASE, UNBIASED) and (row["scene"], row["seed"]) in made
    ]
    [group] = [group for group in groups([*rows, *ends]) if rows[0] in group.rows]
    steady, right = READ["read.steady"], READ["read.right"]

    def mean(setting: str, figure: Figure) -> str:
        found = group.mean(setting, figure.name)
        return figure.number(None if found is None else found.value)

    lines = []
    for setting in group.settings:
        test = None if setting == UNBIASED else group.difference(setting, steady.name, base=UNBIASED)
        less = _difference_cell(test, steady, holds=False)
        lines.append([f"`{setting}`", mean(setting, steady), less, mean(setting, right)])
    titles = [column_title(steady), "less those without biases", column_title(right)]
    return _table(["setting", *titles], lines)


def page(text: str, rows: Sequence[Row], further: Sequence[Row]) -> str:
    """Return the page with what stands between its markers brought up to date. further: lines of further schedules.

    Raises ValueError if markers are missing.
    """
    text = marked.refreshed(text, "study", f"\n{summary(rows)}\n")
    return marked.refreshed(text, "schedules", f"\n{schedules(further, rows)}\n")
