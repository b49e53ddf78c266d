"""The inexpensive measures of a run, taken while its video is decoded, also at the borders between its parts."""

from collections.abc import Mapping, Sequence

from vinfinity.job import Job
from vinfinity.media.watch import VideoFigures, VideoWatch
from vinfinity.parallel.shards import FrameShards


def borders(job: Job, shards: FrameShards) -> dict[str, list[int]]:
    """Return the first latent frame after each border, by kind: between `ranks`, and at the `joins` of edits.

    A loop may have one at frame 0. Between frames that an edit keeps, the borders are those of the earlier video.
    shards: how the frames that the run computes are divided among ranks.
    """
    computed, generated = job.selection.frames, job.selection.generated
    new = [frame in generated for frame in range(job.latent_frames)]
    own = {
        "ranks": [computed[shards.held(rank).start] for rank in range(1, shards.ranks)],
        "joins": [frame for frame in range(job.latent_frames) if new[frame] is not new[frame - 1]],
    }
    earlier = {} if job.earlier is None else job.earlier.borders
    # in a loop, the last frame comes before frame 0
    inside = range(0 if job.config.loop else 1, job.latent_frames)

    def of_kind(kind: str) -> list[int]:
        return [
            frame
            for frame in inside
            if frame in (own if new[frame] or new[frame - 1] else earlier).get(kind, ())
        ]

    return {kind: of_kind(kind) for kind in own}


def borders_in_frames(job: Job, shards: FrameShards) -> dict[str, list[int]]:
    """Return the borders in frames of the video instead of latent frames, as run.json records them."""
    return {kind: _in_frames(job, starts) for kind, starts in borders(job, shards).items()}


def find_figures(job: Job, found: Mapping[str, Sequence[int]], watch: VideoWatch) -> VideoFigures:
    """Return the measures of a decoded video.

    found: its borders as in run.json. watch: what was recorded while it was decoded.
    """
    geometry = job.card.geometry
    starts = [geometry.latent_frames(frame + 1) - 1 for frames in found.values() for frame in frames]
    scenes = [scene.start for scene in job.prompts.scenes if scene.start]
    return watch.figures(
        borders=_in_frames(job, starts),
        latent_borders=starts,
        scenes=_in_frames(job, scenes),
        latent_scenes=scenes,
        one_prompt=len({prompt.text for prompt in job.prompts.prompts}) == 1,
    )


def _in_frames(job: Job, starts: list[int]) -> list[int]:
    """Return the first video frame that each latent frame decodes to."""
    return [job.card.geometry.frame_span(range(start, start + 1)).start for start in starts]
