"""The text that guides each frame of a video.

Dims: b guidance branches, s distinct text states, t text tokens, c channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class FrameText:
    """Text states, and which of them guide each frame.

    states: (b, s, t, c). of_frames: the number of the state for each frame that the ranks compute; None if all frames
    share one.
    """

    states: Tensor
    of_frames: Sequence[int] | None = None

    @classmethod
    def same(cls, states: Tensor) -> "FrameText":
        """Make a text that is the same for all frames, from states (b, t, c)."""
        return cls(states[:, None])

    def split(self, branches: int) -> "list[FrameText]":
        """Split into parts of at most `branches` guidance branches."""
        return [replace(self, states=part) for part in self.states.split(branches)]

    def branch(self, number: int) -> "FrameText":
        """Return the text of one guidance branch."""
        return replace(self, states=self.states[number : number + 1])

    def runs(self, frames: range) -> list[tuple[range, Tensor]]:
        """Divide frames into runs of consecutive frames that share a text state.

        Returns, for each run, its positions among `frames` and its state (b, t, c).
        """
        if self.of_frames is None:
            return [(range(len(frames)), self.states[:, 0])]
        found: list[tuple[int, range]] = []
        for position, frame in enumerate(frames):
            state = self.of_frames[frame]
            if found and found[-1][0] == state:
                found[-1] = state, range(found[-1][1].start, position + 1)
            else:
                found.append((state, range(position, position + 1)))
        return [(positions, self.states[:, state]) for state, positions in found]
