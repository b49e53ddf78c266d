"""How ranks take turns at decoding a video: pure arithmetic, equal on every rank."""

from dataclasses import dataclass

from vinfinity.media.blocks import Blocks
from vinfinity.models.decoder import Decoder

# The most memory that the pictures of a turn may take.
TURN_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Turns:
    """How the ranks of a run take turns at decoding.

    ranks: the number of ranks that decode, from rank 0 on. length: the latent frames that each decodes in a turn. time:
    the time to decode the video, in units of one latent frame.
    """

    ranks: int
    length: int
    time: float

    @property
    def held(self) -> int:
        """Turns whose pictures are in the memory of rank 0: its own, the next one, and one that it is receiving."""
        return 2 + (self.ranks > 1)


def plan_turns(decoder: Decoder, latents: int, blocks: Blocks, *, ranks: int, picture_bytes: int) -> Turns:
    """Return how `ranks` ranks decode `latents` latent frames. picture_bytes: the size of a picture.

    Independent frames are decoded one block per turn. With a causal decoder, each turn begins in the middle of the
    video, which costs the time of `restart_cost` latent frames. The length of turns is the one with which decoding ends
    first, as long as the pictures of a turn fit into 256 MiB; rank 0 decodes alone if that is as fast.
    """
    if not decoder.config.causal:
        return Turns(ranks, blocks.frames, latents / ranks)
    alone = Turns(1, blocks.frames, float(latents))
    most = max(1, TURN_BYTES // (picture_bytes * decoder.config.time_downscale))
    shared = [
        Turns(ranks, length, shared_time(latents, ranks, length, restart_cost=decoder.restart_cost))
        for length in range(1, min(most, latents) + 1)
        if ranks > 1
    ]
    return min([alone, *shared], key=lambda turns: turns.time)


def shared_time(latents: int, ranks: int, length: int, *, restart_cost: float) -> float:
    """Return the time to decode a video in turns of `length` latent frames, in units of one latent frame.

    In a round, all ranks decode at the same time, each for length + restart_cost. The last round ends with the video.
    The transfer of latents and pictures is not counted: at 832x480, a latent frame has 0.4 MB and its pictures have 4.8
    MB, against 13.5 TFLOP.
    """
    rounds = -(-latents // (ranks * length))
    last = min(length, latents - (rounds - 1) * ranks * length)
    return (rounds - 1) * (length + restart_cost) + last + restart_cost
