"""Copies between host and device for which the host does not wait."""

from dataclasses import dataclass

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor on a device. A GPU copies it from pinned memory, while the host goes on."""
    if torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class HostCopy:
    """A tensor on the CPU, or on its way there. ready: the event after which it is there; None: it is there."""

    tensor: Tensor
    ready: torch.cuda.Event | None = None

    def wait(self) -> Tensor:
        """The tensor, once it is there."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.tensor


def to_host(x: Tensor) -> HostCopy:
    """Starts to copy a tensor to the CPU. A GPU copies it to pinned memory, while the host goes on."""
    if x.device.type != "cuda":
        return HostCopy(x.cpu())
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    # without a stream, an event would be one of the current device, which may be another one
    return HostCopy(host, torch.cuda.current_stream(x.device).record_event())
