"""A checkpoint is one part per rank; another number of ranks reads other ranges of the same frames."""

from scripts.figures.svg import RANKS, Drawing
from vinfinity.parallel.shards import FrameShards

FRAMES, WROTE, READS = 48, 2, 3
LEFT, PITCH = 40.0, 14.0


def row(d: Drawing, top: float, ranks: int, label: str) -> None:
    """Return the clips of some ranks."""
    shards = FrameShards(FRAMES, ranks)
    for rank in range(ranks):
        held = shards.held(rank)
        x, width = LEFT + held.start * PITCH, len(held) * PITCH - 4
        d.rect(x, top, width, 30, RANKS[rank], radius=4)
        d.text(x + width / 2, top + 20, f"{label} {rank}", "on", size=13, anchor="middle")


def figure() -> str:
    """Return the SVG."""
    d = Drawing(760, 304, "Two ranks write two parts of a checkpoint; three ranks resume from them.")
    d.text(LEFT, 36, "Resume on another number of ranks", "strong", size=17)
    wrote, parts, reads = 58.0, 128.0, 214.0
    row(d, wrote, WROTE, "rank")
    row(d, reads, READS, "rank")
    written, read = FrameShards(FRAMES, WROTE), FrameShards(FRAMES, READS)
    for rank in range(WROTE):
        held = written.held(rank)
        x, width = LEFT + held.start * PITCH, len(held) * PITCH - 4
        middle = x + width / 2
        d.rect(x, parts, width, 36, "box", radius=4)
        name = f"frames {held.start} to {held.stop - 1}, with SHA-256"
        d.text(middle, parts + 23, name, size=13, anchor="middle")
        d.arrow(middle, wrote + 32, middle, parts - 3)
    for rank in range(READS):
        for part in range(WROTE):
            shared = [frame for frame in read.held(rank) if frame in written.held(part)]
            if shared:
                x = LEFT + (shared[0] + len(shared) / 2) * PITCH - 2
                d.arrow(x, parts + 38, x, reads - 3)
    d.text(LEFT, 274, "Noise is a function of (seed, frame, step), so the video stays the same.", size=13)
    return d.svg()
