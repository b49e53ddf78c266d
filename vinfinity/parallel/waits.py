"""What a rank waits for from the others at a moment, for the thread that shows its signs of life."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch


class Event(Protocol):
    """A point in the work of a GPU, as torch.cuda.Event."""

    def record(self) -> object: ...
    def query(self) -> bool: ...


@dataclass(frozen=True)
class DeviceWait:
    """A point at which the work of a GPU waits for messages. reached: before it. answered: after it."""

    label: str
    reached: Event
    answered: Event


class Waits:
    """For what the host and the GPU of this rank wait: names of operations.

    host: what the host waits for, None if it does not wait. A GPU waits while its host runs ahead; two events around
    each wait tell where it is. event: makes one.
    """

    def __init__(self, event: Callable[[], Event] | None = None) -> None:
        self._event = event or torch.cuda.Event
        self.host: str | None = None
        self._device: deque[DeviceWait] = deque()

    @contextlib.contextmanager
    def on_host(self, label: str) -> Iterator[None]:
        """The host waits inside the block."""
        self.host = label
        try:
            yield
        finally:
            self.host = None

    @contextlib.contextmanager
    def on_device(self, label: str) -> Iterator[None]:
        """The block makes the GPU wait."""
        wait = DeviceWait(label, self._event(), self._event())
        wait.reached.record()
        yield
        wait.answered.record()
        self._device.append(wait)
        while self._device[0].answered.query() and len(self._device) > 1:
            self._device.popleft()

    @property
    def device(self) -> str | None:
        """What the GPU waits for; None if it computes, or has nothing to do."""
        waiting = next((wait for wait in list(self._device) if not wait.answered.query()), None)
        return None if waiting is None or not waiting.reached.query() else waiting.label
