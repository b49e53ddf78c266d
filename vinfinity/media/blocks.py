"""How a video is divided into blocks and tiles for decoding: pure arithmetic, equal on every device and rank."""

from dataclasses import dataclass

from vinfinity.config import DecodeConfig
from vinfinity.errors import InputError
from vinfinity.models.decoder import AutoencoderConfig
from vinfinity.models.geometry import LatentGeometry

# Without `decode.frames`: the most bytes of hidden states and the most frames of a block.
# Larger blocks are no faster, and divide less evenly among ranks.
BLOCK_BYTES = 512 * 2**20
BLOCK_FRAMES = 8

# Kernels of convolutions and upsampling index the elements of a tensor with 31 bits.
MOST_ELEMENTS = 2**31 - 1

# Tiles overlap by 1 / OVERLAP of their side.
OVERLAP = 4


@dataclass(frozen=True)
class Blocks:
    """The division of a video into blocks and tiles.

    frames: the number of latent frames decoded at once. tile: the side of a tile in latent positions; None for whole
    frames. bytes: the peak memory of decoding a block in fp32, without weights and the backend's workspace.
    """

    frames: int
    tile: int | None
    bytes: int


def check_tile(config: DecodeConfig, geometry: LatentGeometry) -> None:
    """Raise InputError if `decode.tile` is set and cannot be used.

    The overlap of tiles must be a whole number of latent positions, and latent frames must be independent of each
    other.
    """
    if config.tile is not None and geometry.time_downscale > 1:
        problem = "does not help: the model's decoder keeps frames for every tile, more than for whole frames"
        raise InputError("decode.tile", config.tile, "remove it", problem=problem)
    multiple = OVERLAP * geometry.downscale
    if config.tile is not None and config.tile % multiple:
        below, above = config.tile // multiple * multiple, -(-config.tile // multiple) * multiple
        remedy = f"use {below} or {above}" if below else f"use {above}"
        raise InputError(
            "decode.tile", config.tile, remedy, problem=f"is not a multiple of {multiple} pixels"
        )


def plan_blocks(
    config: DecodeConfig, decoder: AutoencoderConfig, latent: tuple[int, int], *, sample_bytes: int = 1
) -> Blocks:
    """Return the blocks and tiles that `config` asks for.

    latent: (h, w). sample_bytes: the bytes of a sample in the pictures, 1 or 2.

    Without `decode.frames`, a block has as many frames as fit into 512 MiB, at least 1 and at most 8; with a causal
    decoder, always one latent frame. Raises InputError if a tensor would have more elements than kernels can index.
    """
    height, width = latent
    side = None if config.tile is None else config.tile // decoder.downscale
    if side is not None and max(height, width) <= side:
        side = None
    rows, columns = (height, width) if side is None else (min(side, height), min(side, width))
    area = decoder.downscale**2
    hidden = 4 * decoder.peak_channels * rows * columns * area
    scale = decoder.time_downscale
    # pictures of this block, and of the previous block, which is still being written
    pictures = sample_bytes * 2 * 3 * scale * height * width * area
    # the lower edges of two rows of tiles, and the right edge of a tile
    edges = 0
    if side is not None:
        edges = 4 * 3 * (side // OVERLAP) * (3 * width + side) * area
    frames = 1 if decoder.causal else config.frames or max(1, min(BLOCK_FRAMES, BLOCK_BYTES // hidden))
    most = MOST_ELEMENTS // (decoder.widest_channels * rows * columns * area)
    if most == 0:
        raise _too_large(config, decoder, latent, piece=(rows, columns))
    if frames > most:
        problem = "decodes so many frames at once that tensors have more than 2^31 elements"
        remedy = f"use at most {most}, or remove it"
        raise InputError("decode.frames", config.frames, remedy, problem=problem)
    return Blocks(frames=frames, tile=side, bytes=frames * (hidden + pictures + edges))


def _too_large(
    config: DecodeConfig, decoder: AutoencoderConfig, latent: tuple[int, int], *, piece: tuple[int, int]
) -> InputError:
    """Return the error for pieces of which kernels cannot index a single frame. piece: (h, w) in latent positions."""
    video_size, piece_size = (
        f"{columns * decoder.downscale}x{rows * decoder.downscale}" for rows, columns in (latent, piece)
    )
    problem = f"decodes pieces of {piece_size} pixels, in which tensors have more than 2^31 elements"
    if decoder.causal:
        return InputError("size", video_size, "use a smaller size", problem=problem)
    return InputError("decode.tile", config.tile, "add decode.tile=1024", problem=problem)
