"""What encoding and decoding need to know of an autoencoder, whichever family it belongs to.

Dims: b pictures, c channels, h w height and width of a latent, H W of a picture.
"""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn


class AutoencoderConfig(Protocol):
    """The part of an autoencoder's architecture that decides sizes and memory.

    latent_channels: of its latents. downscale: pixels per latent position, along each side.
    peak_channels: the most channels, counted at the picture's resolution, that are alive at once while decoding.
    widest_channels: the same of a single tensor.
    """

    @property
    def latent_channels(self) -> int: ...
    @property
    def downscale(self) -> int: ...
    @property
    def peak_channels(self) -> int: ...
    @property
    def widest_channels(self) -> int: ...


class Encoder(Protocol):
    """Encodes pictures to latents, each frame independently of the others."""

    @property
    def config(self) -> AutoencoderConfig: ...

    def to_latents(self, pictures: Tensor) -> Tensor:
        """pictures: (b, 3, H, W) in [-1, 1]. Returns (b, c, h, w) as the diffusion model sees them."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def __hash__(self) -> int: ...


class Decoder(Protocol):
    """Decodes latents to pictures, each frame independently of the others."""

    @property
    def config(self) -> AutoencoderConfig: ...

    def decode(self, latents: Tensor) -> Tensor:
        """latents: (b, c, h, w) as the diffusion model leaves them. Returns (b, 3, H, W), about [-1, 1]."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def __hash__(self) -> int: ...
