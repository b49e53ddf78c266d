"""Copies between host and device for which the host does not wait."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vinfinity.system.out_of_memory import is_out_of_memory
from vinfinity.system.progress import logger


def pinned(make: Callable[..., Tensor]) -> Tensor:
    """Allocate pinned host memory, which a GPU copies to and from without blocking the host. make: as torch.empty.

    If no more memory can be pinned, return pageable memory: copies are correct, but slower. WSL pins 0.5 to 2 GB.
    """
    try:
        return make(pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    _warn_of_pageable_memory()
    return make()


@functools.cache
def _warn_of_pageable_memory() -> None:
    """Warn once in this process."""
    logger.warning(
        "the driver pins no more host memory, as is usual in WSL: copies to and from the GPU are slower"
    )


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy a CPU tensor to a device. A GPU copies it from pinned memory, without blocking the host."""
    if torch.device(device).type != "cuda":
        return x.to(device)
    return pinned(partial(torch.empty_like, x)).copy_(x).to(device, non_blocking=True)


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
    host = pinned(partial(torch.empty, x.shape, dtype=x.dtype))
    host.copy_(x, non_blocking=True)
    # without a stream, an event would be one of the current device, which may be another one
    return HostCopy(host, torch.cuda.current_stream(x.device).record_event())
