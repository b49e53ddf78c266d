"""From the latents of a whole video to its files: the MP4, and a contact sheet beside it."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vinfinity.config import RunConfig
from vinfinity.media.behind import work_behind
from vinfinity.media.blocks import plan_blocks
from vinfinity.media.decode import decode_block, decode_frames
from vinfinity.media.files import output_path, sheet_path
from vinfinity.media.latents import LatentSource
from vinfinity.media.mp4 import Mp4Writer
from vinfinity.media.sheet import ContactSheet
from vinfinity.models.tiny import LatentDecoder
from vinfinity.parallel.ranks import Ranks
from vinfinity.progress import Progress


def write_video(
    decoder: LatentDecoder,
    source: LatentSource | None,
    config: RunConfig,
    *,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    fps: int,
    metadata: Mapping[str, str],
    ranks: Ranks,
    progress: Progress,
    unfinished: Path | None = None,
    of: str = "",
) -> None:
    """Decodes the latents into the MP4, which is written in a thread behind, with a contact sheet beside it.

    source: the latents, on rank 0. The other ranks come here only to decode their share, and write nothing.
    latent: (c, h, w) of one frame. size: (width, height) of the video in pixels. metadata, unfinished: see
    Mp4Writer. of: names latents and decoder; frames of the same that an earlier call left in `unfinished` are not
    decoded again. Raises OutputError where a file cannot be written.
    """
    blocks = plan_blocks(config.decode, decoder.config, latent[1:])
    together = ranks if config.decode.where == "ranks" else Ranks(device=ranks.device)
    width, height = size
    writer = None
    if ranks.first:
        writer = Mp4Writer(
            output_path(config),
            width=width,
            height=height,
            fps=fps,
            config=config.video,
            metadata=metadata,
            unfinished=unfinished,
            of=json.dumps([of, config.frames, blocks.frames, blocks.tile]),
        )
    first = together.collect(writer.frames if writer else 0)[0]
    frames = range(first, config.frames)
    pictures = decode_frames(
        decoder, source, frames=frames, latent=latent, size=size, blocks=blocks, ranks=together
    )
    if source is None or writer is None:
        for _ in pictures:
            pass
        return
    if first:
        progress.note(f"{first} of {config.frames} frames are decoded already")
    sheet_at = sheet_path(config)
    sheet = None if sheet_at is None else ContactSheet(sheet_at, frames_total=config.frames)

    def write(picture: np.ndarray) -> None:
        if sheet is not None and writer.frames in sheet.frames:
            sheet.add(picture)
        writer.write(picture)

    with writer:
        if sheet is not None:
            for frame in itertools.takewhile(lambda frame: frame < first, sheet.frames):
                latents = source.read(range(frame, frame + 1))
                block = decode_block(decoder, latents, size=size, tile=blocks.tile)
                sheet.add(block.wait()[0].numpy())
        shown = progress.track(pictures, total=len(frames), label="decoding", unit="frame")
        # two blocks: the encoder has work while the next one is decoded, and rests where decoding is slower
        work_behind(shown, write, waiting=2 * blocks.frames)
    if sheet is not None:
        sheet.save()
