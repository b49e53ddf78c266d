"""The interface of an autoencoder, whichever family it belongs to.

Dims: b latent frames, f video frames, c channels, h w latent height and width, H W picture height and width.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor, nn


class AutoencoderConfig(Protocol):
    """The part of an autoencoder's architecture that determines sizes and memory.

    latent_channels: channels of the latents. downscale: pixels per latent position, along each side.
    time_downscale: frames per latent frame; the first frame of a video has a latent frame of its own.
    causal: whether frames depend on earlier latent frames. Such a decoder takes one latent frame at a time.
    peak_channels: the most channels, counted at the picture's resolution, that are alive at once while a latent frame
    is decoded. widest_channels: the most channels of a single tensor, counted likewise.
    """

    @property
    def latent_channels(self) -> int: ...
    @property
    def downscale(self) -> int: ...
    @property
    def time_downscale(self) -> int: ...
    @property
    def causal(self) -> bool: ...
    @property
    def peak_channels(self) -> int: ...
    @property
    def widest_channels(self) -> int: ...


class DecoderStream(Protocol):
    """Decodes the latent frames of a video in order.

    first: the latent frame that the first call must pass. It may be earlier than the requested start: a causal decoder
    needs some of the video before it.
    """

    @property
    def first(self) -> int: ...

    def frames(self, count: int) -> int:
        """Return how many frames the next `count` latent frames decode to."""
        ...

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode the next latent frames and yield their pictures in order: (f, 3, H, W) each time, about [-1, 1].

        latents: (b, c, h, w), as the diffusion model leaves them.
        """
        ...


class EncoderStream(Protocol):
    """Encodes the frames of a video in order.

    first: the latent frame that the first call must pass. It may be earlier than the requested start: a causal encoder
    needs some of the video before it. Latents before the requested start differ from those of the whole video.
    """

    @property
    def first(self) -> int: ...

    def encode(self, pictures: Tensor) -> Tensor:
        """Return the latents (b, c, h, w) of the next latent frames, as the diffusion model sees them.

        pictures: all frames of these latent frames, (f, 3, H, W) in [-1, 1]. A causal encoder takes the frames of one
        latent frame at a time.
        """
        ...


class Encoder(Protocol):
    """Encodes pictures to latents."""

    @property
    def config(self) -> AutoencoderConfig: ...

    def encoder_stream(self, start: int = 0) -> EncoderStream:
        """Start to encode at the latent frame `start`, exactly as if the whole video were encoded."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def __hash__(self) -> int: ...


class Decoder(Protocol):
    """Decodes latents to pictures.

    restart_cost: the time it takes to start in the middle of a video, in latent frames.
    """

    @property
    def config(self) -> AutoencoderConfig: ...
    @property
    def restart_cost(self) -> float: ...

    def stream(self, start: int = 0) -> DecoderStream:
        """Start to decode at the latent frame `start`, exactly as if the whole video were decoded."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def __hash__(self) -> int: ...


class FrameDecoder(Decoder, Protocol):
    """Decodes each frame independently of the others."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (b, c, h, w), as the diffusion model leaves them. Returns (b, 3, H, W), about [-1, 1]."""
        ...


class FrameStream:
    """The stream of a decoder that decodes each frame independently."""

    def __init__(self, decode: Callable[[Tensor], Tensor], start: int) -> None:
        self._decode, self.first = decode, start

    def frames(self, count: int) -> int:
        return count

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        yield self._decode(latents)


class FrameEncoderStream:
    """The stream of an encoder that encodes each frame independently."""

    def __init__(self, encode: Callable[[Tensor], Tensor], start: int) -> None:
        self._encode, self.first = encode, start

    def encode(self, pictures: Tensor) -> Tensor:
        return self._encode(pictures)


class Framewise(nn.Module):
    """A base class for autoencoders that treat each frame independently."""

    restart_cost = 0.0

    def to_latents(self, pictures: Tensor) -> Tensor:
        """Encode pictures (b, 3, H, W) in [-1, 1]. Returns (b, c, h, w), as the diffusion model sees them."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (b, c, h, w), as the diffusion model leaves them. Returns (b, 3, H, W), about [-1, 1]."""
        raise NotImplementedError

    def stream(self, start: int = 0) -> FrameStream:
        """Start to decode at the latent frame `start`."""
        return FrameStream(self.decode, start)

    def encoder_stream(self, start: int = 0) -> FrameEncoderStream:
        """Start to encode at the frame `start`."""
        return FrameEncoderStream(self.to_latents, start)
