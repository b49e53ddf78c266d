"""The plot of the study of long videos: each setting's differences from the base, with their intervals."""

from collections.abc import Sequence

import numpy as np

from scripts.figures.study import BASE, SHOWN, Group, column_title
from scripts.figures.svg import Drawing
from vinfinity.evaluation.figures import Figure
from vinfinity.evaluation.statistics import Paired

PER_LINE, LABEL, PANEL, GAP, LINE, TOP, HEAD, FOOT = 3, 92.0, 222.0, 26.0, 18.0, 82.0, 30.0, 40.0


def plot(group: Group) -> str:
    """Return an SVG with a panel for each figure: the difference of each setting from the base, with its interval."""
    settings = [setting for setting in group.settings if setting != BASE]
    panel_height = HEAD + LINE * len(settings) + FOOT
    width = 32 + LABEL + PER_LINE * (PANEL + GAP)
    lines = -(-len(SHOWN) // PER_LINE)
    title = (
        f"Differences from {BASE}: {group.frames} frames, {group.steps} steps, guidance {group.guidance:g}, "
        f"weights {group.weights}"
    )
    d = Drawing(width, TOP + lines * panel_height, title)
    d.text(32, 36, title, "strong", size=17)
    about = "means over prompts with intervals of 95 %; green: better, red: worse, beyond chance; gray: may be chance"
    d.text(32, 58, about, "muted", size=13)
    for number, figure in enumerate(SHOWN):
        line, column = divmod(number, PER_LINE)
        y = TOP + line * panel_height + HEAD
        if column == 0:
            for at, setting in enumerate(settings):
                d.text(24 + LABEL, y + at * LINE + 12, setting, size=12, anchor="end")
        _panel(d, group, figure, settings, x=32 + LABEL + column * (PANEL + GAP), y=y)
    return d.svg()


def _panel(d: Drawing, group: Group, figure: Figure, settings: Sequence[str], *, x: float, y: float) -> None:
    tests = [group.differences.get((setting, figure.name)) for setting in settings]
    reach = _reach([test for test in tests if test is not None])
    height, centre, scale = LINE * len(settings), x + PANEL / 2, (PANEL / 2 - 6) / reach
    d.rect(x, y, PANEL, height, "box")
    d.text(x, y - 9, column_title(figure), size=13)
    d.line(centre, y, centre, y + height, "line", stroke=1)
    for value, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end")):
        at = {"start": x, "middle": centre, "end": x + PANEL}[anchor]
        label = "0" if value == 0 else f"{value:+.2g}"
        d.text(at, y + height + 15, label, "muted", size=11, anchor=anchor)
    for number, (setting, test) in enumerate(zip(settings, tests, strict=True)):
        if test is None:
            continue
        middle = y + number * LINE + LINE / 2
        low, value, high = (max(-reach, min(reach, at)) for at in (test.low, test.mean, test.high))
        colour = _colour(test, figure, holds=(setting, figure.name) in group.holding)
        line = "line" if colour == "gray" else f"line-{colour}"
        d.line(centre + low * scale, middle, centre + high * scale, middle, line, stroke=2)
        for end, beyond in ((low, test.low < -reach), (high, test.high > reach)):
            if beyond:
                d.head(
                    centre + end * scale,
                    middle,
                    1 if end > 0 else -1,
                    0,
                    "arrow" if colour == "gray" else colour,
                )
        if abs(test.mean) <= reach:
            d.circle(centre + value * scale, middle, 3.5, "arrow" if colour == "gray" else colour)


def _reach(tests: Sequence[Paired]) -> float:
    """Return the largest difference that a panel shows: outliers, which get arrows, would leave the others no room."""
    extents = [max(abs(test.low), abs(test.high)) for test in tests]
    return min(max(extents), 4 * float(np.median(extents))) or 1.0 if extents else 1.0


def _colour(test: Paired, figure: Figure, *, holds: bool) -> str:
    if not holds:
        return "gray"
    if figure.better is None:
        return "blue"
    return "green" if (test.mean > 0) == (figure.better == "high") else "red"
