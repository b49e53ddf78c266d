"""Weight files written one tensor at a time, so that a conversion holds only one of them in memory."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.system.safetensors import streamed_file
from vinfinity.weights.dtypes import HEADER_NAMES


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` to a file, cast to the types of the layout.

    layout: dtype and shape of every tensor. Raises OSError if the file cannot be written, ValueError if the tensors do
    not match the layout.
    """
    named = {name: (HEADER_NAMES[dtype], shape) for name, (dtype, shape) in layout.items()}
    with streamed_file(path, named, metadata={"format": "pt", **(metadata or {})}) as file:
        for name, tensor in tensors:
            if name not in layout:
                raise ValueError(f"{name}: is not in the layout")
            dtype, shape = layout[name]
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name}: has the shape {tuple(tensor.shape)}, not {shape}")
            file.write(
                name, tensor.detach().to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
