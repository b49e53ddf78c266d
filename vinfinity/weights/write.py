"""Safetensors files written one tensor at a time, so that a conversion holds no more than one in memory."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `tensors` in their order to a new file.

    layout: dtype and shape of every tensor, in the order in which they come; they are cast to that dtype.
    Raises OSError where the disk is full, ValueError where the tensors are not those of the layout.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        size = dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    expected = iter(layout.items())
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            wanted, (dtype, shape) = next(expected, ("nothing more", (tensor.dtype, ())))
            if (name, tuple(tensor.shape)) != (wanted, shape):
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} came in place of {wanted} of {shape}"
                )
            file.write(tensor.detach().to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if (rest := next(expected, None)) is not None:
            raise ValueError(f"{rest[0]} is missing")
