"""What ranks tell each other once per denoising step, in one message, so that all of them decide the same."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Vote:
    """One rank's vote.

    finite: whether its prediction has no NaN or infinite values. checkpoint_due: whether a checkpoint is due by its
    clock. stop: whether it received a shutdown request.
    """

    finite: bool
    checkpoint_due: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Votes:
    """The votes of all ranks, in the order of ranks."""

    cast: Sequence[Vote]

    @property
    def finite(self) -> bool:
        """Whether every prediction is finite."""
        return all(vote.finite for vote in self.cast)

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due by the clock of rank 0."""
        return self.cast[0].checkpoint_due

    @property
    def stop(self) -> bool:
        """Whether a shutdown was requested on any rank."""
        return any(vote.stop for vote in self.cast)
