"""Copies between host and device for which the host does not wait."""

from dataclasses import dataclass

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy a CPU tensor to a device. A GPU copies it from pinned memory, without blocking the host."""
    if torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class HostCopy:
    """A tensor on the CPU, or on its way there. ready: the event after which it has arrived; None if it already has."""

    tensor: Tensor
    ready: torch.cuda.Event | None = None

    def wait(self) -> Tensor:
        """Return the tensor once it has arrived."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.tensor


def to_host(x: Tensor) -> HostCopy:
    """Start to copy a tensor to the CPU. A GPU copies it to pinned memory, without blocking the host."""
    if x.device.type != "cuda":
        return HostCopy(x.cpu())
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return HostCopy(host, ready)
