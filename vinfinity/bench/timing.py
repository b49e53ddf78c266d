"""Time calls in turn, so that drift of the machine affects all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each call, by name, in the order of rounds."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, to: str) -> list[float]:
        """Return the ratio of one call's time to another's in each round, ascending."""
        return sorted(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))

    def ratio(self, name: str, to: str) -> str:
        """Return the median ratio and its range over the rounds, as text."""
        ratios = self.ratios(name, to)
        return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, barrier: Callable[[], object] = lambda: None
) -> Times:
    """Time each call once per round, after a round for warming up.

    barrier: runs before and after each call, for ranks that must start together and are only as fast as the slowest.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-1, rounds):
        for name, call in calls.items():
            barrier()
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            barrier()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - started)
    return Times({name: tuple(times) for name, times in seconds.items()})
