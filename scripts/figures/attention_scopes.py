"""Which frame attends to which: the local scope, the anchors, and the schedule of their biases."""

from scripts.figures.svg import Drawing
from vinfinity.parallel.shards import anchor_frames

FRAMES, LOCAL, ANCHORS = 40, 3, 8
CELL, LEFT, TOP = 8.0, 76.0, 70.0


def matrix(d: Drawing) -> None:
    """Query frames by key frames."""
    anchors = set(anchor_frames(FRAMES, ANCHORS))
    side = FRAMES * CELL
    d.text(LEFT, TOP - 34, "Which frames attend to which", "strong", size=17)
    d.text(LEFT, TOP - 12, "key frame 0", "muted", size=12)
    d.text(LEFT + side, TOP - 12, str(FRAMES - 1), "muted", size=12, anchor="end")
    d.text(LEFT - 8, TOP + 10, "query 0", "muted", size=12, anchor="end")
    d.text(LEFT - 8, TOP + side, str(FRAMES - 1), "muted", size=12, anchor="end")
    for query in range(FRAMES):
        for key in range(FRAMES):
            near = abs(query - key) <= LOCAL
            if near or key in anchors:
                style = "purple" if near and key in anchors else "orange" if near else "blue"
                d.rect(LEFT + key * CELL, TOP + query * CELL, CELL - 1, CELL - 1, style, radius=1)
    d.rect(LEFT - 2, TOP - 2, side + 3, side + 3, "grid", radius=3)
    x, y = LEFT + side + 28, TOP + 30
    for style, label in (
        ("orange", "local scope"),
        ("blue", "anchors"),
        ("purple", "in both: attended once,"),
    ):
        d.rect(x, y - 11, 13, 13, style)
        d.text(x + 22, y, label, size=14)
        y += 26
    d.text(x + 22, y - 6, "with the larger bias", size=14)
    d.text(x, y + 40, "Each row has about the same", "muted", size=13)
    d.text(x, y + 58, "number of keys, so the cost", "muted", size=13)
    d.text(x, y + 76, "is linear in the video's length.", "muted", size=13)


def schedule(d: Drawing, top: float) -> None:
    """Return the paper's schedule of biases over the denoising timesteps."""
    left, width, switch = LEFT, 560.0, 0.2
    d.text(left, top, "Which scope is preferred when", "strong", size=17)
    d.rect(left, top + 18, width * switch, 34, "blue", radius=3)
    d.rect(left + width * switch + 2, top + 18, width * (1 - switch) - 2, 34, "orange", radius=3)
    d.text(left + width * switch / 2, top + 40, "anchors +10", "on", size=14, anchor="middle")
    d.text(left + width * (1 + switch) / 2, top + 40, "local scope +10", "on", size=14, anchor="middle")
    for at, label, anchor in (
        (0.0, "t = 999: noise", "start"),
        (switch, "800", "middle"),
        (1.0, "0: video", "end"),
    ):
        d.text(left + width * at, top + 72, label, "muted", size=13, anchor=anchor)
    d.text(
        left,
        top + 98,
        "The anchors fix the layout of the whole video; then neighbours make the motion smooth.",
        size=13,
    )


def figure() -> str:
    """Return the SVG."""
    d = Drawing(
        700,
        540,
        "A matrix of query and key frames with the band of the local scope and the columns of the anchors, and the "
        "schedule: anchors are preferred while t is above 800, the local scope afterwards.",
    )
    matrix(d)
    schedule(d, TOP + FRAMES * CELL + 40)
    return d.svg()
