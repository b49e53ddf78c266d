"""How UNet calls are carried out: what is a choice between memory and speed, and never changes the video."""

from dataclasses import dataclass, replace
from typing import Literal

from vinfinity.config import RunConfig

MIB = 2**20
SHORT = 32  # frames of a rank up to which both guidance branches at once keep a device busier


@dataclass(frozen=True)
class Execution:
    """branches: guidance branches that one UNet call takes at once. skips: where skip connections wait for the way up.
    stretch: bytes of hidden states that a layer works on at once, which bounds its temporaries.
    """

    branches: int
    skips: Literal["device", "host"]
    stretch: int


def ladder(config: RunConfig, *, branches: int, frames: int, device: str) -> list[Execution]:
    """The executions that `config` allows, from the fastest to the leanest; `memory: auto` takes the first that fits.

    branches: guidance branches that a rank computes. frames: the most that a rank holds. device: its type.
    """
    large, small = (
        (256 * MIB, 64 * MIB) if device == "cuda" else (4 * MIB, 2 * MIB)
    )  # that of a CPU fits its caches
    rungs = [
        Execution(branches=branches, skips="device", stretch=large),
        Execution(branches=1, skips="device", stretch=large),
        Execution(branches=1, skips="device", stretch=small),
        Execution(branches=1, skips="host", stretch=small),
    ]
    if config.memory == "low":
        rungs = rungs[-1:]
    elif config.memory == "fast":
        rungs = rungs[:1]
    elif frames > SHORT:
        rungs = rungs[
            1:
        ]  # long clips keep a device busy with one branch; both would only take twice the memory
    if device == "cpu":
        # there, device and host are one memory
        rungs = [replace(rung, skips="device") for rung in rungs]
    wanted = config.compute
    chosen = [
        Execution(
            branches=min(wanted.branches or rung.branches, branches),
            skips=wanted.skips or rung.skips,
            stretch=rung.stretch if wanted.chunk is None else wanted.chunk * MIB,
        )
        for rung in rungs
    ]
    return list(dict.fromkeys(chosen))
