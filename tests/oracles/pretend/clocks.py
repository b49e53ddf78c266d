"""Vector clocks (Fidge 1988; Mattern 1988): which operations of the host and of streams are ordered behind which."""

from collections import defaultdict
from collections.abc import Mapping

HOST = "the host"
# how many operations of each actor are known to be done
Clock = Mapping[str, int]


class Clocks:
    """One clock for the host and for each stream; all of them are actors, known by name.

    An operation is a pair (actor, number). It is ordered behind another one if its actor knew of that one: because it
    is the same actor's, or through an event, a wait, or the host, which had waited for it before.
    """

    def __init__(self) -> None:
        self._clocks: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def tick(self, actor: str) -> int:
        """Return the number of the actor's next operation. An operation of a stream comes after what the host knows."""
        if actor != HOST:
            self.join(actor, self._clocks[HOST])
        clock = self._clocks[actor]
        clock[actor] = clock.get(actor, 0) + 1
        return clock[actor]

    def now(self, actor: str) -> Clock:
        """Return what an actor knows now."""
        return dict(self._clocks[actor])

    def join(self, actor: str, other: Clock) -> None:
        """Return the actor waits for all that `other` knows."""
        clock = self._clocks[actor]
        for name, count in other.items():
            clock[name] = max(clock.get(name, 0), count)

    def knows(self, actor: str, of: str, number: int) -> bool:
        """Whether the next operation of `actor` is ordered behind operation `number` of the actor `of`."""
        return max(self._clocks[actor].get(of, 0), self._clocks[HOST].get(of, 0)) >= number
