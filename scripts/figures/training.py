"""How the embedded model learned: its loss, then the share of clips whose direction it reads from the prompt."""

from collections.abc import Sequence

from scripts.figures.plots import rows
from scripts.figures.svg import Drawing

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 700.0, 320.0, 60.0, 32.0, 84.0, 262.0
MOST = 130_000
TITLES = {
    "video8": "8 frames",
    "video16": "16 frames",
    "more": "new clips",
    "turn": "mirrored pairs",
    "colours": "colours",
}
Point = tuple[float, float]


def figure() -> str:
    """Two curves over the clips that were seen, and the stages of the training below them."""
    data = rows("mini-training.csv")
    d = Drawing(WIDTH, HEIGHT, "How mini learned")
    d.text(LEFT, 36, "How mini learned", "strong", size=17)
    d.text(
        LEFT,
        58,
        "by clips seen: loss (blue), and share of clips whose direction it reads (orange)",
        "muted",
        size=13,
    )
    for tenths in (0, 2, 4, 6, 8, 10):
        y = _height(tenths / 10)
        d.line(LEFT, y, WIDTH - RIGHT, y, "grid")
        d.text(LEFT - 10, y + 4, f"{tenths / 10:g}", size=12, anchor="end")
    before = 0
    for stage, title in TITLES.items():
        last = max(int(row["clips"]) for row in data if row["stage"] == stage)
        d.line(_across(last), TOP, _across(last), BOTTOM, "line")
        d.text(_across((before + last) / 2), BOTTOM + 20, title, size=12, anchor="middle")
        d.text(_across(last), BOTTOM + 40, f"{last / 1000:.0f} k", "muted", size=12, anchor="middle")
        before = last
    for column, style in (("video_loss", "line-blue"), ("told", "line-orange")):
        points = [(_across(int(row["clips"])), _height(float(row[column]))) for row in data if row[column]]
        d.path(_line(points), style, stroke=2)
    return d.svg()


def _line(points: Sequence[Point]) -> str:
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _across(clips: float) -> float:
    return LEFT + clips / MOST * (WIDTH - LEFT - RIGHT)


def _height(value: float) -> float:
    return BOTTOM - value * (BOTTOM - TOP)
