"""The text that each frame of a video is guided by.

Dims: b guidance branches, s different text states, t text tokens, c channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class FrameText:
    """Text states, and which of them guide each frame.

    states: (b, s, t, c). of_frames: the state of each frame that the ranks compute; None if there is one for all.
    """

    states: Tensor
    of_frames: Sequence[int] | None = None

    @classmethod
    def same(cls, states: Tensor) -> "FrameText":
        """The same states (b, t, c) for all frames."""
        return cls(states[:, None])

    def split(self, branches: int) -> "list[FrameText]":
        """Parts of at most `branches` guidance branches."""
        return [replace(self, states=part) for part in self.states.split(branches)]

    def branch(self, number: int) -> "FrameText":
        """One guidance branch."""
        return replace(self, states=self.states[number : number + 1])

    def runs(self, frames: range) -> list[tuple[range, Tensor]]:
        """The states of some frames, consecutive frames with the same ones together.

        Returns their positions among `frames`, and states (b, t, c).
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
