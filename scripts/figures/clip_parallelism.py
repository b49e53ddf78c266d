"""The figure of the README: a video cut over four GPUs, what one frame attends to, and what travels."""

from scripts.figures.svg import RANKS, Drawing, number
from vinfinity.parallel.context import plan_halo
from vinfinity.parallel.shards import FrameShards, anchor_frames
from vinfinity.parallel.timeline import one_scene

FRAMES, GPUS, LOCAL, ANCHORS, QUERY = 40, 4, 3, 8, 21
PITCH, CELL, GAP, LEFT = 15.0, 12.5, 26.0, 41.0


def left_of(shards: FrameShards, frame: int) -> float:
    """Return where the cell of a frame begins."""
    return LEFT + frame * PITCH + shards.owner(frame) * GAP


def attention(d: Drawing, shards: FrameShards, top: float) -> None:
    """Return what the query frame sees: its local scope and the anchors, in place on all four GPUs."""
    anchors = set(anchor_frames(FRAMES, ANCHORS))
    near = range(QUERY - LOCAL, QUERY + LOCAL + 1)
    own = shards.held(shards.owner(QUERY))
    fetched = sorted(frame for frame in {*near, *anchors} if frame not in own)
    strip, height = top + 112, 30
    middle = left_of(shards, QUERY) + CELL / 2

    d.text(LEFT, top, "Dual-scope attention: what one frame sees", "strong", size=17)
    for frame in sorted(anchors.difference(near)):
        x = left_of(shards, frame) + CELL / 2
        rise = 26 + 0.2 * abs(x - middle)
        low, high = number(strip - 4), number(strip - rise)
        m, x_ = number(middle), number(x)
        d.path(f"M{m} {low}C{m} {high} {x_} {high} {x_} {low}", "line", stroke=1.3)
    for frame in range(FRAMES):
        x, colour = left_of(shards, frame), RANKS[shards.owner(frame)]
        seen = frame in anchors or frame in near
        d.rect(x, strip, CELL, height, colour, fill_opacity="1" if seen else "0.22")
        if frame in anchors:
            d.circle(x + CELL / 2, strip + height / 2, 3.2, "on")
    first, last = left_of(shards, near[0]), left_of(shards, near[-1]) + CELL
    d.path(f"M{number(first)} {number(strip + 36)}v6H{number(last)}v-6", "outline")
    d.rect(
        left_of(shards, QUERY) - 2, strip - 3, CELL + 4, height + 6, "outline", radius=3, stroke_width="2.2"
    )
    d.text(middle, top + 28, "the query frame", size=13, anchor="middle")
    d.arrow(middle, top + 34, middle, strip - 6)
    right = left_of(shards, FRAMES - 1) + CELL
    d.text(right, top + 28, f"anchors: {ANCHORS} frames spread", size=13, anchor="end")
    d.text(right, top + 44, "over the whole video", size=13, anchor="end")
    d.text(middle, strip + 59, f"local scope: {LOCAL} frames before and after it", size=13, anchor="middle")
    own_gpu = shards.owner(QUERY)
    d.text(
        middle,
        strip + 78,
        f"GPU {own_gpu} fetches the {len(fetched)} of these frames that other GPUs hold",
        "muted",
        size=13,
        anchor="middle",
    )


def travels(d: Drawing, shards: FrameShards, top: float) -> None:
    """Return the clips with the halo that each GPU fetches, and the statistics that all of them share."""
    d.text(LEFT, top, "Clip parallelism: what travels between GPUs", "strong", size=17)
    strip, height = top + 22, 30
    for rank in range(GPUS):
        held = shards.held(rank)
        x, width = left_of(shards, held.start), len(held) * PITCH - (PITCH - CELL)
        for frame in held:
            d.rect(left_of(shards, frame), strip, CELL, height, RANKS[rank])
        for frame in plan_halo(shards, rank, one_scene(shards.frames)).route.wanted:
            at = x - 12 if frame < held.start else x + width + 2.5
            d.rect(at, strip + 4, 9.5, height - 8, f"{RANKS[shards.owner(frame)]} halo", fill_opacity="0.45")
        middle = x + width / 2
        d.text(middle, strip + 51, f"GPU {rank}", "strong", size=13, anchor="middle")
        d.text(
            middle, strip + 68, f"frames {held.start} to {held.stop - 1}", "muted", size=13, anchor="middle"
        )
        d.line(middle, strip + 76, middle, strip + 92)
        d.circle(middle, strip + 92, 4, "arrow")
    left, right = left_of(shards, 0), left_of(shards, FRAMES - 1) + CELL
    d.line(left, strip + 92, right, strip + 92, stroke=2)
    rows = (
        ("Temporal GroupNorm", "sums over all GPUs (the bar): the statistics of the whole video"),
        ("Temporal convolution", "the halo: one frame of each neighbour (dashed)"),
        ("Temporal attention", "the local scope across the borders, and the anchors"),
        ("All other layers", "nothing: they work frame by frame"),
    )
    for index, (layer, what) in enumerate(rows):
        y = strip + 122 + 22 * index
        d.text(LEFT, y, layer, "strong", size=13)
        d.text(LEFT + 176, y, what, size=13)


def figure() -> str:
    """Return the SVG."""
    shards = FrameShards(FRAMES, GPUS)
    d = Drawing(
        760,
        522,
        "A video split over four GPUs. One query frame attends to its local scope, which crosses a border between "
        "two GPUs, and to anchors spread over the whole video.",
    )
    attention(d, shards, 38)
    d.line(LEFT, 254, 760 - LEFT, 254, "grid", stroke=1)
    travels(d, shards, 290)
    return d.svg()
