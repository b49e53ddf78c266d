"""From the latents of a whole video to its files: the MP4, and a contact sheet beside it."""

from collections.abc import Mapping

from torch import Tensor

from vinfinity.config import RunConfig
from vinfinity.media.decode import decode_frames
from vinfinity.media.files import output_path, sheet_path
from vinfinity.media.mp4 import Mp4Writer
from vinfinity.media.sheet import ContactSheet
from vinfinity.models.vae import AutoencoderKL
from vinfinity.parallel.ranks import Ranks
from vinfinity.progress import Progress


def write_video(
    vae: AutoencoderKL,
    latents: Tensor | None,
    config: RunConfig,
    *,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    fps: int,
    metadata: Mapping[str, str],
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Decodes the latents into the MP4 while it is written, with a contact sheet beside it.

    latents: (1, c, F, h, w) on rank 0. The other ranks come here only to decode their share, and write nothing.
    latent: (c, h, w) of one frame. size: (width, height) of the video in pixels. metadata: see Mp4Writer.
    Raises OutputError where a file cannot be written.
    """
    pictures = decode_frames(
        vae,
        latents,
        frames=config.frames,
        latent=latent,
        size=size,
        block=config.decode.frames or 8,
        ranks=ranks if config.decode.where == "ranks" else Ranks(device=ranks.device),
    )
    if latents is None:
        for _ in pictures:
            pass
        return
    width, height = size
    sheet_at = sheet_path(config)
    sheet = None if sheet_at is None else ContactSheet(sheet_at, frames_total=config.frames)
    writer = Mp4Writer(
        output_path(config), width=width, height=height, fps=fps, config=config.video, metadata=metadata
    )
    with writer:
        for picture in progress.track(pictures, total=config.frames, label="decoding", unit="frame"):
            writer.write(picture)
            if sheet is not None:
                sheet.add(picture)
    if sheet is not None:
        sheet.save()
