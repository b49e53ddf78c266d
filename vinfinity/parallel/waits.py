"""In which operation a rank currently waits for others, for its heartbeats."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch


class Event(Protocol):
    """A point in a GPU's work, as torch.cuda.Event."""

    def record(self) -> object: ...
    def query(self) -> bool: ...


@dataclass(frozen=True)
class DeviceWait:
    """An operation in which a GPU waits for messages.

    label: the operation. reached: the point before the wait. answered: the point after it.
    """

    label: str
    reached: Event
    answered: Event


class Waits:
    """The operations in which the host and the GPU of this rank wait, by label.

    host: the operation in which the host waits; None if it does not wait. A GPU waits while its host runs ahead; two
    events around each wait show whether it is waiting. event: makes an event.
    """

    def __init__(self, event: Callable[[], Event] | None = None) -> None:
        self._event = event or torch.cuda.Event
        self.host: str | None = None
        self._device: deque[DeviceWait] = deque()

    @contextlib.contextmanager
    def on_host(self, label: str) -> Iterator[None]:
        """Record that the host waits inside the block."""
        self.host = label
        try:
            yield
        finally:
            self.host = None

    @contextlib.contextmanager
    def on_device(self, label: str) -> Iterator[None]:
        """Record that the block makes the GPU wait."""
        wait = DeviceWait(label, self._event(), self._event())
        wait.reached.record()
        yield
        wait.answered.record()
        self._device.append(wait)
        while self._device[0].answered.query() and len(self._device) > 1:
            self._device.popleft()

    @property
    def device(self) -> str | None:
        """The operation in which the GPU waits; None if it computes or is idle."""
        waiting = next((wait for wait in list(self._device) if not wait.answered.query()), None)
        return None if waiting is None or not waiting.reached.query() else waiting.label
