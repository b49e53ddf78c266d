"""Memory and speed trade-offs of a network call. None of them changes the video, up to rounding."""

from dataclasses import dataclass, replace
from typing import Literal

from vinfinity.config import RunConfig

MIB = 2**20
# up to this many frames, both guidance branches are computed in one pass, which keeps a device busier
BOTH_BRANCHES_FRAMES = 64
# bytes of hidden states in a chunk, large and small; those for a CPU fit into its caches
CHUNK_BYTES = {"cuda": (256 * MIB, 64 * MIB), "cpu": (4 * MIB, 2 * MIB)}


@dataclass(frozen=True)
class Execution:
    """How calls of the denoiser are carried out.

    branches: guidance branches computed in one pass. skips: where skip connections wait for the decoder half.
    chunk_bytes: bytes of hidden states that a layer works on at once, which bounds its temporaries.
    """

    branches: int
    skips: Literal["device", "host"]
    chunk_bytes: int


def ladder(config: RunConfig, *, branches: int, frames: int, device: str) -> list[Execution]:
    """Return the executions that `config` allows, from the fastest to the leanest.

    `memory: auto` takes the first that fits. branches: guidance branches that a rank computes. frames: frames that all
    ranks together denoise; if a single rank's frames decided, the number of ranks would change the last bits. device:
    the device's type.
    """
    large, small = CHUNK_BYTES["cuda" if device == "cuda" else "cpu"]
    rungs = [
        Execution(branches=branches, skips="device", chunk_bytes=large),
        Execution(branches=1, skips="device", chunk_bytes=large),
        Execution(branches=1, skips="device", chunk_bytes=small),
        Execution(branches=1, skips="host", chunk_bytes=small),
    ]
    if config.memory == "low":
        rungs = rungs[-1:]
    elif config.memory == "fast":
        rungs = rungs[:1]
    elif frames > BOTH_BRANCHES_FRAMES:
        # many frames keep a device busy with one branch; two would only take twice the memory
        rungs = rungs[1:]
    if device == "cpu":
        # on a CPU, device and host memory are the same
        rungs = [replace(rung, skips="device") for rung in rungs]
    chosen = config.compute
    executions = [
        Execution(
            branches=min(chosen.branches or rung.branches, branches),
            skips=chosen.skips or rung.skips,
            chunk_bytes=rung.chunk_bytes if chosen.chunk is None else chosen.chunk * MIB,
        )
        for rung in rungs
    ]
    return list(dict.fromkeys(executions))
