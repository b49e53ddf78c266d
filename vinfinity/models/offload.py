"""Where hidden states wait until they are needed again: skip connections, and deep features kept over several steps.

Dims: b batch, f frames, h w height and width, c channels. States are (b, f, h, w, c).
On the device they are simply kept. In host memory they leave the device while the way down goes on, and come back a
stretch of frames at a time, each fetched while the one before it is worked on.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Frames(Protocol):
    """Hidden states that are read by stretches of frames."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, some: slice) -> Tensor:
        """The frames `some`, (b, f', h, w, c), on the device."""
        ...


class Store(Protocol):
    """Keeps hidden states. keep: takes (b, f, h, w, c), which the caller must not change afterwards."""

    def keep(self, x: Tensor) -> Frames: ...


@dataclass(frozen=True)
class Held:
    """States as they are, on the device."""

    x: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def read(self, some: slice) -> Tensor:
        return self.x[:, some]


class DeviceStore:
    """Keeps states where they are."""

    def keep(self, x: Tensor) -> Frames:
        return Held(x)


@dataclass
class _Away:
    """States in host memory. `ahead` is the stretch that was fetched before it was asked for."""

    host: Tensor
    store: "HostStore"
    ahead: tuple[slice, Tensor, "torch.cuda.Event | None"] | None = field(default=None, repr=False)

    @property
    def shape(self) -> torch.Size:
        return self.host.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.host.dtype

    def read(self, some: slice) -> Tensor:
        fetched = (
            self.ahead
            if self.ahead is not None and self.ahead[0] == some
            else self.store.fetch(self.host, some)
        )
        following = slice(some.stop, min(2 * some.stop - some.start, self.shape[1]))
        self.ahead = self.store.fetch(self.host, following) if following.start < following.stop else None
        _, frames, arrived = fetched
        if arrived is not None:
            torch.cuda.current_stream(frames.device).wait_event(arrived)
            frames.record_stream(torch.cuda.current_stream(frames.device))
        return frames


class HostStore:
    """Keeps states in host memory, pinned where the device is a GPU; copies run on a stream of their own, so that the
    host waits for none of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def keep(self, x: Tensor) -> Frames:
        host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=self.stream is not None)
        if self.stream is None:
            host.copy_(x)
        else:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                host.copy_(x, non_blocking=True)
            x.record_stream(self.stream)  # its memory is not given away before it has left
        return _Away(host, self)

    def fetch(self, host: Tensor, some: slice) -> tuple[slice, Tensor, "torch.cuda.Event | None"]:
        """Starts to bring some frames back: the stretch, the frames, and the event after which they are there."""
        if self.stream is None:
            return some, host[:, some].to(self.device), None
        with torch.cuda.stream(self.stream):
            frames = torch.empty(
                (host.shape[0], some.stop - some.start, *host.shape[2:]), dtype=host.dtype, device=self.device
            )
            for branch, theirs in zip(
                frames, host, strict=True
            ):  # one stretch of pinned memory each: no copy in between
                branch.copy_(theirs[some], non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self.stream)
        return some, frames, arrived
