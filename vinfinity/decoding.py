"""Decode final latents to files."""

from pathlib import Path

from vinfinity.media.video import VideoFiles, VideoSpec, write_video
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
    if ranks.is_first and destination.latents is not None:
        save_whole(latents, destination.latents, source="x", name="latents")
    if not ranks.is_first and not config.decode.on_all_ranks(ranks.device.type):
        return None
    audio = config.audio_source
    spec = VideoSpec(
        frames=config.frames,
        latent=job.latent,
        size=config.resolution,
        fps=config.fps,
        format=config.format,
        metadata=job.tags() if config.video.metadata else {},
        audio=None if audio is None else expanded(audio[1], field=audio[0]),
    )
    files = VideoFiles(
        destination.video,
        sheet=destination.sheet,
        unfinished=unfinished,
        identity=f"{latents.digest()} {job.decoder_digest}",
    )
    return write_video(
        networks.decoder(job),
        latents if ranks.is_first else None,
        spec,
        files,
        decode=config.decode,
        ranks=ranks,
        progress=progress,
    )
