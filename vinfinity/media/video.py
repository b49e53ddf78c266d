"""From the latents of a video to its files: the video and a contact sheet."""

import itertools
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from vinfinity.config import DecodeConfig, VideoFormat
from vinfinity.media.background import consume_in_background
from vinfinity.media.blocks import Blocks, plan_blocks
from vinfinity.media.decode import decode_frames, decode_single, geometry_of
from vinfinity.media.latents import LatentSource
from vinfinity.media.sheet import ContactSheet, to_8_bits
from vinfinity.media.watch import FrameWatch, LatentWatch, VideoWatch
from vinfinity.media.writer import VideoWriter
from vinfinity.models.decoder import Decoder
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.progress import Progress


@dataclass(frozen=True)
class VideoSpec:
    """A video to decode and encode.

    frames: its length. latent: (c, h, w) of a latent frame. size: (width, height) in pixels.
    format, fps, metadata, audio: see `VideoWriter`.
    """

    frames: int
    latent: tuple[int, int, int]
    size: tuple[int, int]
    fps: Fraction | int
    format: VideoFormat
    metadata: Mapping[str, str] = field(default_factory=dict)
    audio: Path | None = None


@dataclass(frozen=True)
class VideoFiles:
    """The files to write.

    sheet: the contact sheet; None writes none. unfinished: the file of the frames that were encoded so far, see
    `VideoWriter`. identity: identifies the latents and the decoder; frames that an earlier call with this identity left
    in `unfinished` are not decoded again.
    """

    video: Path
    sheet: Path | None = None
    unfinished: Path | None = None
    identity: str = ""


def write_video(
    decoder: Decoder,
    source: LatentSource | None,
    spec: VideoSpec,
    files: VideoFiles,
    *,
    decode: DecodeConfig,
    ranks: Ranks,
    progress: Progress,
) -> VideoWatch | None:
    """Decode latents, encode the frames in a background thread, and write a contact sheet.

    source: the latents, on rank 0. Other ranks decode their share and write nothing. Returns what rank 0 measured of
    the frames and latents that were decoded. Raises OutputError if a file cannot be written.
    """
    blocks = plan_blocks(decode, decoder.config, spec.latent[1:])
    together = ranks if decode.on_all_ranks(ranks.device.type) else ranks.alone()
    writer = _open_writer(spec, files, blocks) if ranks.is_first else None
    first = together.all_gather(writer.frames if writer else 0)[0]
    remaining = range(first, spec.frames)
    watched = None
    if source is not None:
        watched = LatentWatch(source, geometry_of(decoder).latent_frames(spec.frames))
    pictures = decode_frames(
        decoder,
        watched,
        frames=remaining,
        latent=spec.latent,
        size=spec.size,
        blocks=blocks,
        ranks=together,
        bits=spec.format.sample_bits,
    )
    if watched is None or writer is None:
        deque(pictures, maxlen=0)
        return None
    if first:
        progress.note(f"{first} of {spec.frames} frames have already been decoded")
    seen = FrameWatch(spec.frames)
    sheet = None if files.sheet is None else ContactSheet(files.sheet, frames_total=spec.frames)

    def write(picture: np.ndarray) -> None:
        if sheet is not None and writer.frames in sheet.frames:
            sheet.add(to_8_bits(picture))
        seen.add(writer.frames, picture)
        writer.write(picture)

    with writer:
        if sheet is not None:
            for frame in itertools.takewhile(lambda frame: frame < first, sheet.frames):
                sheet.add(decode_single(decoder, watched, frame, size=spec.size, tile=blocks.tile))
        shown = progress.track(pictures, total=len(remaining), label="decoding", unit="frame")
        # two blocks: the encoder has work while the next block is decoded, and idles if decoding is slower
        consume_in_background(shown, write, most_pending=2 * blocks.frames * decoder.config.time_downscale)
    if sheet is not None:
        sheet.save()
    return VideoWatch(seen, watched)


def _open_writer(spec: VideoSpec, files: VideoFiles, blocks: Blocks) -> VideoWriter:
    width, height = spec.size
    return VideoWriter(
        files.video,
        spec.format,
        width=width,
        height=height,
        fps=spec.fps,
        metadata=spec.metadata,
        audio=spec.audio,
        unfinished=files.unfinished,
        identity=json.dumps([files.identity, spec.frames, blocks.frames, blocks.tile]),
    )
