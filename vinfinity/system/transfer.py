"""Copies to a device for which the host does not wait."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor on a device. A GPU copies it from pinned memory, while the host goes on."""
    if torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
