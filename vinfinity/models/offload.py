"""Where hidden states wait until they are used: skip connections, and deep features reused over several steps.

Dims: b batch, f frames, h w height and width, c channels. States are (b, f, h, w, c).
A store on the device keeps references. A store in host memory copies states away while the downward half of the UNet
goes on, and brings them back a chunk of frames at a time, each while the chunk before it is being used.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor


class Frames(Protocol):
    """Hidden states that are read in chunks of frames."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, frames: slice) -> Tensor:
        """These frames, (b, f', h, w, c), on the device."""
        ...


class Store(Protocol):
    """Stores hidden states."""

    def keep(self, x: Tensor) -> Frames:
        """x: (b, f, h, w, c), which the caller must not change afterwards."""
        ...


@dataclass(frozen=True)
class OnDevice:
    """States as they are, on the device."""

    x: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def read(self, frames: slice) -> Tensor:
        return self.x[:, frames]


class DeviceStore:
    """Leaves states where they are."""

    def keep(self, x: Tensor) -> Frames:
        return OnDevice(x)


@dataclass(frozen=True)
class Transfer:
    """A chunk of frames on its way to the device. arrived: the event after which it is there; None: it is there."""

    frames: slice
    x: Tensor
    arrived: "torch.cuda.Event | None"


@dataclass
class _OnHost:
    """States in host memory. next: the chunk that is fetched before it is asked for."""

    host: Tensor
    store: "HostStore"
    next: Transfer | None = field(default=None, repr=False)

    @property
    def shape(self) -> torch.Size:
        return self.host.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.host.dtype

    def read(self, frames: slice) -> Tensor:
        transfer = self.next
        if transfer is None or transfer.frames != frames:
            transfer = self.store.fetch(self.host, frames)
        following = slice(frames.stop, min(2 * frames.stop - frames.start, self.shape[1]))
        self.next = self.store.fetch(self.host, following) if following.start < following.stop else None
        if transfer.arrived is not None:
            stream = torch.cuda.current_stream(transfer.x.device)
            stream.wait_event(transfer.arrived)
            transfer.x.record_stream(stream)
        return transfer.x


class HostStore:
    """Stores states in host memory, pinned if the device is a GPU.

    Copies run on a CUDA stream of their own; the host waits for none of them.
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
            # the memory of x must not be reused before the copy has ended
            x.record_stream(self.stream)
        return _OnHost(host, self)

    def fetch(self, host: Tensor, frames: slice) -> Transfer:
        """Starts to copy frames of (b, f, h, w, c) in host memory to the device."""
        if self.stream is None:
            return Transfer(frames, host[:, frames].to(self.device), None)
        with torch.cuda.stream(self.stream):
            shape = (host.shape[0], frames.stop - frames.start, *host.shape[2:])
            x = torch.empty(shape, dtype=host.dtype, device=self.device)
            # one piece of contiguous pinned memory per branch: no intermediate copy
            for target, source in zip(x, host, strict=True):
                target.copy_(source[frames], non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self.stream)
        return Transfer(frames, x, arrived)


def store_for(skips: Literal["device", "host"], device: torch.device) -> Store:
    """The store that keeps hidden states of `device` there or in the host's memory."""
    return HostStore(device) if skips == "host" else DeviceStore()
