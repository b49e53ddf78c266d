"""Where a video was divided while it was made, for `run.json`: measures look for seams there. In latent frames."""

from collections.abc import Collection, Sequence

from vinfinity.parallel.shards import FrameShards


def rank_borders(computed: Sequence[int], shards: FrameShards) -> list[int]:
    """The first frame of each rank but the first one. computed: the latent frames of the run."""
    return [computed[shards.held(rank).start] for rank in range(1, shards.ranks)]


def joins(generated: Collection[int], frames: int) -> list[int]:
    """The first frame after each border between kept and generated frames of a video.

    generated: those that the run made anew; all of them in a new video.
    """
    new = [frame in generated for frame in range(frames)]
    return [frame for frame in range(1, frames) if new[frame] is not new[frame - 1]]
