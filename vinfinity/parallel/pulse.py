"""What ranks tell each other once in every denoising step, in one message."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vinfinity.parallel.ranks import Ranks

Word = TypeVar("Word")


@dataclass
class Pulse(Generic[Word]):
    """One exchange of words a step, so that all ranks decide alike: whether the prediction is finite, and what `say`
    adds on each rank. heard: what the ranks said the last time, in their order.
    """

    ranks: Ranks
    say: Callable[[], Word]
    heard: list[Word] = field(default_factory=list)

    def all_finite(self, mine: bool) -> bool:
        """Whether the prediction is finite on every rank. mine: whether it is on this one."""
        words = self.ranks.collect((mine, self.say()))
        self.heard = [word for _, word in words]
        return all(finite for finite, _ in words)
