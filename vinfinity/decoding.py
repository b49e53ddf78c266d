"""Decode final latents to files."""

from pathlib import Path

from vinfinity.media.video import write_video
from vinfinity.media.watch import VideoWatch
from vinfinity.networks import Networks
from vinfinity.parallel.ranks import Ranks
from vinfinity.runs.parts import Parts, save_whole
from vinfinity.system.folders import expanded
from vinfinity.system.progress import Progress
from vinfinity.task import Task


def decode_to_files(
    task: Task,
    latents: Parts,
    networks: Networks,
    ranks: Ranks,
    progress: Progress,
    *,
    unfinished: Path,
) -> VideoWatch | None:
    """Write the video, its contact sheet and the copy of the latents. Ranks other than 0 decode their share.

    unfinished: the file that holds what is decoded so far. Returns, on rank 0, what was recorded of frames and latents.
    """
    job, destination, config = task.job, task.destination, task.job.config
    if ranks.first and destination.latents is not None:
        save_whole(latents, destination.latents, source="x", name="latents")
    if not ranks.first and not config.decode.on_all_ranks(ranks.device.type):
        return None
    return write_video(
        networks.decoder(job),
        latents if ranks.first else None,
        video=destination.video,
        sheet=destination.sheet,
        frames=config.frames,
        latent=job.latent,
        size=config.resolution,
        fps=config.fps,
        video_format=config.format,
        decode=config.decode,
        metadata=job.tags() if config.video.metadata else {},
        audio=None
        if config.audio_source is None
        else expanded(config.audio_source[1], field=config.audio_source[0]),
        unfinished=unfinished,
        identity=f"{latents.digest()} {job.decoder_digest}",
        ranks=ranks,
        progress=progress,
    )
