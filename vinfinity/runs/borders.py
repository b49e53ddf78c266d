"""Where a video was divided while it was made, for `run.json`: measures look for seams there."""

from collections.abc import Collection, Sequence

from vinfinity.models.geometry import LatentGeometry
from vinfinity.parallel.shards import FrameShards


def rank_borders(computed: Sequence[int], shards: FrameShards, geometry: LatentGeometry) -> list[int]:
    """The first frame of each rank but the first one, in frames of the video. computed: latent frames of the run."""
    starts = [shards.held(rank).start for rank in range(1, shards.ranks)]
    return [geometry.frames(computed[start]) for start in starts]


def joins(generated: Collection[int], latent_frames: int, geometry: LatentGeometry) -> list[int]:
    """The first frame after each border between kept and generated frames, in frames of the video.

    generated: latent frames that the run made anew; all of them in a new video.
    """
    new = [frame in generated for frame in range(latent_frames)]
    return [geometry.frames(frame) for frame in range(1, latent_frames) if new[frame] is not new[frame - 1]]
