"""A video file, written frame by frame in any format; an interrupted writer can be continued."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np

from vinfinity.config import VideoFormat
from vinfinity.errors import OutputError, one_line
from vinfinity.media.finish import EncodedVideo, finish
from vinfinity.media.fragments import Fragments
from vinfinity.media.mp4 import HEAD_BOXES, Second, to_picture
from vinfinity.system.files import cannot_write, sync, temporary


class VideoWriter:
    """Writes frames of `width` x `height` pixels one by one; the complete video appears when the block ends.

    Every second is encoded separately and appended to the file `unfinished` as a fragment: with the codec of the video,
    or as PNG for a GIF, a WebP or a folder of PNG. Whatever ends the process, the fragments are playable, and a new
    writer with the same `identity` continues after them, with frame number `frames`. The file is the same no matter how
    often it was resumed. At the end, the requested container is made from the fragments. Without `unfinished`, they are
    in the folder of the video and are deleted if anything fails. An older video at `path` stays unchanged until the
    end.

    video: the format, see `choose_format`. fps: an exact rate, such as 24 or Fraction(30000, 1001). Frame n is shown at
    n / fps seconds; exactly in MP4 and MOV, to the millisecond in WebM and WebP, to 10 ms in GIF. metadata: tags stored
    in the video. audio: a file with audio for the video, which is trimmed or padded with silence.

    Sides that the pixel format does not allow (odd ones in yuv420p) are extended by repeating a row or column.

        with VideoWriter(Path("a.mp4"), choose_format("a.mp4", VideoConfig()), width=512, height=320, fps=24) as video:
            video.write(frame)

    Raises OutputError if the video cannot be written or the encoder fails, DamagedError if the audio can no longer be
    read, ValueError for frames of another shape.
    """

    def __init__(
        self,
        path: Path,
        video: VideoFormat,
        *,
        width: int,
        height: int,
        fps: Fraction | int,
        metadata: Mapping[str, str] | None = None,
        audio: Path | None = None,
        unfinished: Path | None = None,
        identity: str = "",
    ) -> None:
        self.path, self._video, self._encoded = path, video, video.encoded
        self._shape, self._fps = (height, width, 3), Fraction(fps)
        self._dtype = np.dtype(np.uint8 if video.sample_bits == 8 else np.uint16)
        # 30 at 30000/1001 fps
        self._frames_per_second = max(1, round(self._fps))
        columns, rows = self._encoded.chroma
        self._padding = ((0, -height % rows), (0, -width % columns), (0, 0))
        self._metadata, self._audio = metadata or {}, audio
        self._resumable = unfinished is not None
        # if `path` is a link to a folder, the new folder is made next to its target, on the same file system
        self._target = Path(os.path.realpath(path)) if video.container.is_folder else path
        # only one process writes to a run folder, and leftovers of a killed run are overwritten; elsewhere, names are
        # random: even process numbers repeat, on other machines and in containers
        own = "" if self._resumable else f"{secrets.token_hex(4)}."
        self._copy = temporary(self._target, f"{own}part")
        encoding = [self._encoded.codec.encoder, dict(self._encoded.options), self._encoded.pixel_format]
        depends_on = json.dumps([identity, self._shape, str(self._fps), encoding, av.__version__])
        self._fragments = Fragments(
            unfinished or temporary(path, f"{own}fragments"),
            identity=hashlib.sha256(depends_on.encode()).hexdigest(),
            # errors do not name temporary files, which users do not know
            shown=unfinished or path,
        )
        # the number of frames written so far
        self.frames = self._fragments.frames
        try:
            self._second: Second | None = self._begin_second()
        except BaseException:
            self._abandon()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            self._end_second()
            finish(self._encoded_video(), self._copy)
            _replace(self._copy, self._target)
            self._fragments.remove()
        except (OSError, ValueError, av.error.FFmpegError) as failure:
            self._abandon()
            raise cannot_write(self.path, failure) from failure
        except BaseException:
            self._abandon()
            raise

    def write(self, frame: np.ndarray) -> None:
        """Add one frame, (height, width, 3): uint8, or uint16 for formats of more than 8 bits; full-range RGB."""
        if frame.shape != self._shape or frame.dtype != self._dtype:
            raise ValueError(f"a frame is {self._shape} {self._dtype}, not {frame.shape} {frame.dtype}")
        picture = to_picture(np.pad(frame, self._padding, mode="edge"), self._encoded)
        picture.pts = self.frames
        self._second = self._second or self._begin_second()
        try:
            self._second.write(picture)
        except (OSError, av.error.FFmpegError) as error:
            raise cannot_write(self.path, error) from error
        self.frames += 1
        if self.frames % self._frames_per_second == 0:
            self._end_second()

    def _begin_second(self) -> Second:
        height, width, _ = self._shape
        (_, rows), (_, columns), _ = self._padding
        try:
            return Second(
                self._encoded,
                width=width + columns,
                height=height + rows,
                first=self.frames,
                frames=self._frames_per_second,
                fps=self._fps,
                metadata=self._metadata if self._video.container.holds_codec else {},
            )
        except (ValueError, av.error.FFmpegError) as error:
            encoder = self._encoded.codec.encoder
            raise OutputError(
                f"{self.path}: cannot be encoded, this build of PyAV has no {encoder} ({one_line(error)})"
            ) from error

    def _end_second(self) -> None:
        """Append the frames since the last fragment, if there are any, as a new one."""
        frames, second, self._second = self.frames - self._fragments.frames, self._second, None
        if not frames or second is None:
            return
        try:
            boxes = second.end()
        except (OSError, av.error.FFmpegError) as error:
            raise cannot_write(self.path, error) from error
        if self._fragments.frames:
            boxes = [(kind, box) for kind, box in boxes if kind not in HEAD_BOXES]
        self._fragments.add(b"".join(box for _, box in boxes), frames=frames)

    def _encoded_video(self) -> EncodedVideo:
        height, width, _ = self._shape
        return EncodedVideo(
            self._fragments.path,
            self._video,
            size=(width, height),
            frames=self.frames,
            fps=self._fps,
            metadata=self._metadata,
            audio=self._audio,
        )

    def _abandon(self) -> None:
        if self._copy.is_dir():
            shutil.rmtree(self._copy, ignore_errors=True)
        else:
            self._copy.unlink(missing_ok=True)
        if not self._resumable:
            self._fragments.remove()


def _replace(new: Path, path: Path) -> None:
    """Replace a file or a folder by a new one; the old one stays if this fails. Raises OSError."""
    if new.is_dir() and path.is_dir():
        # os.replace can replace a folder only if it is empty
        old = temporary(path, "old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(new, path)
    sync(path.parent)
