"""From the latents of a whole video to its files: the video, and a contact sheet beside it."""

import itertools
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from vinfinity.config import DecodeConfig, VideoFormat
from vinfinity.media.background import consume_in_background
from vinfinity.media.blocks import plan_blocks
from vinfinity.media.decode import decode_frames, decode_single, geometry_of
from vinfinity.media.latents import LatentSource
from vinfinity.media.sheet import ContactSheet, to_8_bits
from vinfinity.media.watch import FrameWatch, LatentWatch, VideoWatch
from vinfinity.media.writer import VideoWriter
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
    fps: Fraction | int,
    video_format: VideoFormat,
    decode: DecodeConfig,
    metadata: Mapping[str, str],
    ranks: Ranks,
    progress: Progress,
    audio: Path | None = None,
    unfinished: Path | None = None,
    identity: str = "",
) -> VideoWatch | None:
    """Decodes the latents into a video, which a background thread encodes, with a contact sheet beside it.

    source: the latents, on rank 0. Other ranks only decode their share and write nothing.
    video, sheet: the files to write; no contact sheet if `sheet` is None. frames: length of the video.
    latent: (c, h, w) of one frame. size: (width, height) of the video in pixels.
    metadata, audio, unfinished: see VideoWriter.
    identity: covers the latents and the decoder. Frames that an earlier call with the same identity left in
    `unfinished` are not decoded again. Raises OutputError if a file cannot be written.
    Returns what was seen of the frames and latents that were decoded, on rank 0.
    """
    blocks = plan_blocks(decode, decoder.config, latent[1:])
    everyone = decode.on_all_ranks(ranks.device.type)
    together = ranks if everyone else ranks.alone()
    width, height = size
    writer = None
    if ranks.first:
        writer = VideoWriter(
            video,
            video_format,
            width=width,
            height=height,
            fps=fps,
            metadata=metadata,
            audio=audio,
            unfinished=unfinished,
            identity=json.dumps([identity, frames, blocks.frames, blocks.tile]),
        )
    first = together.all_gather(writer.frames if writer else 0)[0]
    remaining = range(first, frames)
    latent_frames = geometry_of(decoder).latent_frames(frames)
    watched = None if source is None else LatentWatch(source, latent_frames)
    bits = video_format.sample_bits
    pictures = decode_frames(
        decoder, watched, frames=remaining, latent=latent, size=size, blocks=blocks, ranks=together, bits=bits
    )
    if watched is None or writer is None:
        for _ in pictures:
            pass
        return None
    if first:
        progress.note(f"{first} of {frames} frames have already been decoded")
    seen = FrameWatch(frames)
    contact = None if sheet is None else ContactSheet(sheet, frames_total=frames)

    def write(picture: np.ndarray) -> None:
        if contact is not None and writer.frames in contact.frames:
            contact.add(to_8_bits(picture))
        seen.add(writer.frames, picture)
        writer.write(picture)

    with writer:
        if contact is not None:
            for frame in itertools.takewhile(lambda frame: frame < first, contact.frames):
                contact.add(decode_single(decoder, watched, frame, size=size, tile=blocks.tile))
        shown = progress.track(pictures, total=len(remaining), label="decoding", unit="frame")
        # two blocks: the encoder has work while the next block is decoded, and idles if decoding is slower
        consume_in_background(shown, write, most_pending=2 * blocks.frames * decoder.config.time_downscale)
    if contact is not None:
        contact.save()
    return VideoWatch(seen, watched)
