"""Conversions between the size of a video and the size of its latents.

Dims: F frames of a video, f latent frames, c latent channels, h w latent height and width.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentGeometry:
    """The grid of a model's latents.

    channels: channels of the latents. downscale: pixels per latent position, along height and along width.
    time_downscale: frames per latent frame; the first frame of a video has a latent frame of its own.
    multiple: the latent height and width must be multiples of this number.
    """

    channels: int
    downscale: int
    time_downscale: int = 1
    multiple: int = 1

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return (c, h, w) of the smallest latent frame that covers `size`, (width, height) in pixels."""
        step = self.downscale * self.multiple
        width, height = (self.multiple * -(-side // step) for side in size)
        return self.channels, height, width

    def latent_frames(self, frames: int) -> int:
        """Return the smallest number of latent frames that covers `frames` frames; both are at least 1."""
        return 1 + -(-(frames - 1) // self.time_downscale)

    def latent_span(self, frames: range) -> range:
        """Return the latent frames that contribute to a span of frames."""
        if not frames:
            return range(0)
        return range(self.latent_frames(frames.start + 1) - 1, self.latent_frames(frames.stop))

    def frame_span(self, latent_frames: range) -> range:
        """Return the frames that a span of latent frames decodes to."""
        if not latent_frames:
            return range(0)
        start = self.frames(latent_frames.start) if latent_frames.start else 0
        return range(start, self.frames(latent_frames.stop))

    def frames(self, latent_frames: int) -> int:
        """Return how many frames `latent_frames` latent frames, at least 1, decode to."""
        return 1 + (latent_frames - 1) * self.time_downscale
