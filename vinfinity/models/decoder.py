"""What encoding and decoding need to know of an autoencoder, whichever family it belongs to.

Dims: b latent frames, f frames of pictures, c channels, h w height and width of a latent, H W of a picture.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor, nn


class AutoencoderConfig(Protocol):
    """The part of an autoencoder's architecture that decides sizes and memory.

    latent_channels: of its latents. downscale: pixels per latent position, along each side.
    time_downscale: frames per latent frame; the first frame of a video has a latent frame of its own.
    causal: whether frames depend on earlier latent frames. Such a decoder is given one latent frame at a time.
    peak_channels: the most channels, counted at the picture's resolution, that are alive at once while a latent frame
    is decoded. widest_channels: the same of a single tensor.
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

    first: the latent frame that the first call must give. It may come before the one that was asked for: what a causal
    decoder needs of the video so far.
    """

    @property
    def first(self) -> int: ...

    def frames(self, count: int) -> int:
        """The frames that the next `count` latent frames decode to."""
        ...

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """The pictures of the next latent frames, (f, 3, H, W) each time, about [-1, 1], in order.

        latents: (b, c, h, w) as the diffusion model leaves them.
        """
        ...


class EncoderStream(Protocol):
    """Encodes the frames of a video in order.

    first: the latent frame that the first call must give. It may come before the one that was asked for: what a causal
    encoder needs of the video so far. Until then, latents are not those of the whole video.
    """

    @property
    def first(self) -> int: ...

    def encode(self, pictures: Tensor) -> Tensor:
        """The latents (b, c, h, w) of the next latent frames as the diffusion model sees them.

        pictures: all those of these latent frames, (f, 3, H, W) in [-1, 1]; of one latent frame if the encoder is
        causal.
        """
        ...


class Encoder(Protocol):
    """Encodes pictures to latents."""

    @property
    def config(self) -> AutoencoderConfig: ...

    def encoder_stream(self, start: int = 0) -> EncoderStream:
        """Encodes from the latent frame `start` on, exactly as if the whole video were encoded."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def __hash__(self) -> int: ...


class Decoder(Protocol):
    """Decodes latents to pictures.

    restart_cost: the time to begin in the middle of a video, in latent frames.
    """

    @property
    def config(self) -> AutoencoderConfig: ...
    @property
    def restart_cost(self) -> float: ...

    def stream(self, start: int = 0) -> DecoderStream:
        """Decodes from the latent frame `start` on, exactly as if the whole video were decoded."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def __hash__(self) -> int: ...


class FrameDecoder(Decoder, Protocol):
    """Decodes each frame independently of the others."""

    def decode(self, latents: Tensor) -> Tensor:
        """latents: (b, c, h, w) as the diffusion model leaves them. Returns (b, 3, H, W), about [-1, 1]."""
        ...


class FrameStream:
    """The stream of a decoder for which each frame is independent of the others."""

    def __init__(self, decode: Callable[[Tensor], Tensor], start: int) -> None:
        self._decode, self.first = decode, start

    def frames(self, count: int) -> int:
        return count

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        yield self._decode(latents)


class FrameEncoderStream:
    """The stream of an encoder for which each frame is independent of the others."""

    def __init__(self, encode: Callable[[Tensor], Tensor], start: int) -> None:
        self._encode, self.first = encode, start

    def encode(self, pictures: Tensor) -> Tensor:
        return self._encode(pictures)


class Framewise(nn.Module):
    """A base for autoencoders for which each frame is independent of the others."""

    restart_cost = 0.0

    def to_latents(self, pictures: Tensor) -> Tensor:
        """pictures: (b, 3, H, W) in [-1, 1]. Returns (b, c, h, w) as the diffusion model sees them."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """latents: (b, c, h, w) as the diffusion model leaves them. Returns (b, 3, H, W), about [-1, 1]."""
        raise NotImplementedError

    def stream(self, start: int = 0) -> FrameStream:
        """Decodes from the latent frame `start` on."""
        return FrameStream(self.decode, start)

    def encoder_stream(self, start: int = 0) -> FrameEncoderStream:
        """Encodes from the frame `start` on."""
        return FrameEncoderStream(self.to_latents, start)
