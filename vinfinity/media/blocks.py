"""How a video is cut for decoding, as pure arithmetic: the same on every device and any number of ranks."""

from dataclasses import dataclass

from vinfinity.config import DecodeConfig
from vinfinity.errors import InputError
from vinfinity.models.decoder import DecoderConfig

AT_ONCE = 512 * 2**20  # bytes of hidden states that a block of frames may take where the user says nothing
MOST = 8  # frames of a block then: more of them are no faster, and would be dealt to ranks less evenly
OVERLAP = 4  # a tile shares one part in so many with the next


@dataclass(frozen=True)
class Blocks:
    """frames: decoded at once. tile: latent positions of a tile's side, None where frames are decoded whole.
    bytes: what decoding a block holds at most on its device in fp32, but for the weights and the backend's scratch.
    """

    frames: int
    tile: int | None
    bytes: int


def check_tile(config: DecodeConfig, *, downscale: int) -> None:
    """Raises InputError where `decode.tile` cannot be parted into overlaps of whole latent positions.

    downscale: pixels per latent position.
    """
    grain = OVERLAP * downscale
    if config.tile is not None and config.tile % grain:
        below, above = config.tile // grain * grain, -(-config.tile // grain) * grain
        remedy = f"take {below} or {above}" if below else f"take {above}"
        raise InputError("decode.tile", config.tile, remedy, problem=f"is not a multiple of {grain} pixels")


def plan_blocks(config: DecodeConfig, decoder: DecoderConfig, latent: tuple[int, int]) -> Blocks:
    """The blocks and tiles that `config` asks for, for latents of (h, w).

    Without `decode.frames`, a block has as many frames as take 512 MiB together, at least 1 and at most 8.
    """
    height, width = latent
    side = None if config.tile is None else config.tile // decoder.downscale
    if side is not None and max(height, width) <= side:
        side = None
    rows, columns = (height, width) if side is None else (min(side, height), min(side, width))
    area = decoder.downscale**2
    hidden = 4 * decoder.peak_channels * rows * columns * area
    pictures = 2 * 3 * height * width * area  # in 8 bits: of this block, and of the one before on its way out
    edges = 0  # the lower ones of two rows of tiles, which overlap, and the right one of a tile
    if side is not None:
        edges = 4 * 3 * (side // OVERLAP) * (3 * width + side) * area
    frames = config.frames or max(1, min(MOST, AT_ONCE // hidden))
    return Blocks(frames=frames, tile=side, bytes=frames * (hidden + pictures + edges))
