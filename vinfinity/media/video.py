"""From the latents of a whole video to its files: the MP4, and a contact sheet beside it."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vinfinity.config import DecodeConfig, VideoConfig
from vinfinity.media.background import consume_in_background
from vinfinity.media.blocks import plan_blocks
from vinfinity.media.decode import decode_block, decode_frames
from vinfinity.media.latents import LatentSource
from vinfinity.media.mp4 import Mp4Writer
from vinfinity.media.sheet import ContactSheet
from vinfinity.models.decoder import Decoder
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.progress import Progress


def write_video(
    decoder: Decoder,
    source: LatentSource | None,
    *,
    video: Path,
    sheet: Path | None,
    frames: int,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    fps: int,
    codec: VideoConfig,
    decode: DecodeConfig,
    metadata: Mapping[str, str],
    ranks: Ranks,
    progress: Progress,
    unfinished: Path | None = None,
    identity: str = "",
) -> None:
    """Decodes the latents into an MP4, which a background thread encodes, with a contact sheet beside it.

    source: the latents, on rank 0. Other ranks only decode their share and write nothing.
    video, sheet: the files to write; no contact sheet if `sheet` is None. frames: length of the video.
    latent: (c, h, w) of one frame. size: (width, height) of the video in pixels. metadata, unfinished: see Mp4Writer.
    identity: covers the latents and the decoder. Frames that an earlier call with the same identity left in
    `unfinished` are not decoded again. Raises OutputError if a file cannot be written.
    """
    blocks = plan_blocks(decode, decoder.config, latent[1:])
    everyone = decode.on_all_ranks(ranks.device.type)
    together = ranks if everyone else Ranks(device=ranks.device, shutdown=ranks.shutdown)
    width, height = size
    writer = None
    if ranks.first:
        writer = Mp4Writer(
            video,
            width=width,
            height=height,
            fps=fps,
            config=codec,
            metadata=metadata,
            unfinished=unfinished,
            identity=json.dumps([identity, frames, blocks.frames, blocks.tile]),
        )
    first = together.collect(writer.frames if writer else 0)[0]
    remaining = range(first, frames)
    pictures = decode_frames(
        decoder, source, frames=remaining, latent=latent, size=size, blocks=blocks, ranks=together
    )
    if source is None or writer is None:
        for _ in pictures:
            pass
        return
    if first:
        progress.note(f"{first} of {frames} frames have already been decoded")
    contact = None if sheet is None else ContactSheet(sheet, frames_total=frames)

    def write(picture: np.ndarray) -> None:
        if contact is not None and writer.frames in contact.frames:
            contact.add(picture)
        writer.write(picture)

    with writer:
        if contact is not None:
            for frame in itertools.takewhile(lambda frame: frame < first, contact.frames):
                latents = source.read(range(frame, frame + 1))
                block = decode_block(decoder, latents, size=size, tile=blocks.tile)
                contact.add(block.wait()[0].numpy())
        shown = progress.track(pictures, total=len(remaining), label="decoding", unit="frame")
        # two blocks: the encoder has work while the next block is decoded, and idles if decoding is slower
        consume_in_background(shown, write, most_pending=2 * blocks.frames)
    if contact is not None:
        contact.save()
