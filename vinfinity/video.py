"""A video in memory."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vinfinity.config import VideoConfig, VideoFormat, choose_format
from vinfinity.config.formats import check_holds_audio, check_rate
from vinfinity.errors import InputError, did_you_mean
from vinfinity.media.audio import check_audio
from vinfinity.media.encoders import check_encoders
from vinfinity.media.finish import PICTURES
from vinfinity.media.writer import VideoWriter
from vinfinity.system.folders import expanded, temporary_folder
from vinfinity.system.output import check_output, check_output_folder

# settings of `video` that Video.save takes
SAVED = ("codec", "crf", "preset", "pixel_format", "quality", "repeat", "bit_depth")


@dataclass(frozen=True, repr=False)
class Video:
    """A generated video. It shows itself in a notebook.

    frames: (F, height, width, 3) uint8. latents: (1, c, f, h, w) fp32 on the CPU, before decoding, with f latent
    frames. fps: the playback speed. metadata: the tags of the video file.
    """

    frames: np.ndarray
    latents: Tensor
    fps: Fraction | int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames.shape[2], self.frames.shape[1]

    def save(
        self, path: str | Path, *, overwrite: bool = False, audio: str | Path | None = None, **settings: Any
    ) -> Path:
        """Write the video and return its path. The suffix chooses the format: .mp4, .mov, .webm, .gif, .webp, or / for
        a folder of PNG files.

        audio: an audio file for the video. settings: settings of the group `video`, such as crf=28 or codec="h265".
        Frames have 8 bits; `generate_file` can write more. Raises InputError if the video exists and `overwrite` is
        false, or if the settings do not suit the format, and OutputError if it cannot be written.
        """
        video = self._format(str(path), settings)
        sound = None if audio is None else expanded(audio, field="audio")
        check_rate(video, self.fps)
        check_encoders(video, field="path")
        if sound is not None:
            check_holds_audio(video, str(sound))
            check_audio(sound)
        path, remedy = expanded(path, field="path"), "choose another name or pass overwrite=True"
        if video.container.is_folder:
            check_output_folder("path", path, overwrite=overwrite, own=PICTURES, remedy=remedy)
        else:
            check_output("path", path, overwrite=overwrite, remedy=remedy)
        width, height = self.size
        with VideoWriter(
            path, video, width=width, height=height, fps=self.fps, metadata=self.metadata, audio=sound
        ) as writer:
            for frame in self.frames:
                writer.write(frame if video.sample_bits == 8 else frame.astype(np.uint16) * 257)
        return path

    def _format(self, path: str, settings: Mapping[str, Any]) -> VideoFormat:
        """Return the format. Raises InputError for settings that are unknown or do not suit it."""
        for name in settings:
            if name not in SAVED:
                remedy = did_you_mean(name, SAVED) or f"known are {', '.join(SAVED)}"
                raise InputError(name, settings[name], remedy, problem="is an unknown setting")
        video = choose_format(path, VideoConfig(**settings), field="path")
        if video.bits > 8 and settings.get("bit_depth") is not None:
            problem = "is more than the 8 bits of the frames"
            raise InputError("bit_depth", video.bits, "use vinfinity.generate_file", problem=problem)
        return video

    def __repr__(self) -> str:
        width, height = self.size
        return f"Video({len(self.frames)} frames of {width}x{height} at {self.fps} fps)"

    def _repr_html_(self) -> str:
        with temporary_folder() as folder:
            data = self.save(folder / "video.mp4").read_bytes()
        source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        return f'<video controls loop width="{self.size[0]}" src="{source}"></video>'
