"""Safetensors files without torch: headers, slices of frames, files written piece by piece.

A header is a few kilobytes of JSON, so missing, truncated or foreign files are found at once.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vinfinity.errors import WeightsError
from vinfinity.system.files import missing_problem, whole_file

# Bytes of an element, by the name of its type in a header.
ELEMENT_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
LONGEST_HEADER = 100_000_000

Layout = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a file. dtype: the name of its type in the header, such as "F16"."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def shape_text(shape: tuple[int, ...]) -> str:
    """Format a shape for messages: 2x3, or "scalar"."""
    return "x".join(map(str, shape)) or "scalar"


def read_json(path: Path, *, field: str = "model") -> dict[str, Any]:
    """Read the JSON object in a file. field: the setting that names the file, or its model. Raises WeightsError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "the model's folder is incomplete" if field == "model" else "check the path"
        raise WeightsError(field, path, remedy, problem=missing_problem(path, "is missing")) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(field, path, "fetch the file again", problem=f"cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise WeightsError(field, path, "fetch the file again", problem="is not a JSON object")
    return values


# ---- reading ----


def read_header(path: Path, *, field: str = "model") -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file, from its header alone.

    field: the setting that names the file. Raises WeightsError if the file is missing, shorter than its header says, or
    not a safetensors file.
    """
    again = "fetch the file again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise WeightsError(field, path, again, problem="is truncated or not a safetensors file")
            header = json.loads(file.read(length))
        entries = {
            name: TensorEntry(path, str(entry["dtype"]), tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
        ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        whole = 8 + length + max(ends, default=0)
    except OSError as error:
        remedy = "the model's folder is incomplete" if field == "model" else "check the path"
        problem = missing_problem(path, str(error.strerror))
        raise WeightsError(field, path, remedy, problem=problem) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise WeightsError(field, path, again, problem="has a damaged header") from None
    if size != whole:
        problem = f"is truncated: {size:,} of {whole:,} bytes"
        raise WeightsError(field, path, again, problem=problem)
    return entries


def read_frames(path: Path, name: str, frames: range) -> tuple[bytearray, tuple[int, int, int, int]]:
    """Read contiguous frames of an fp32 tensor (1, c, f, h, w). Return their bytes, and their shape (c, f', h, w).

    Uses plain reads: if a memory-mapped file is truncated while it is read, the process dies of SIGBUS. Raises OSError,
    or ValueError if the file has no such frames.
    """
    try:
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            data = file.tell()
            entry = json.loads(header)[name]
            _, channels, total, height, width = entry["shape"]
            frame_bytes = height * width * ELEMENT_BYTES["F32"]
            strip_bytes = len(frames) * frame_bytes
            strips = bytearray(channels * strip_bytes)
            for channel in range(channels):
                file.seek(data + entry["data_offsets"][0] + (channel * total + frames.start) * frame_bytes)
                strip = memoryview(strips)[channel * strip_bytes : (channel + 1) * strip_bytes]
                if file.readinto(strip) < strip_bytes:
                    raise ValueError("the file is truncated")
    except (KeyError, TypeError, MemoryError, OverflowError) as error:
        raise ValueError(f"the header is damaged: {error}") from error
    return strips, (channels, len(frames), height, width)


# ---- writing ----


class StreamedFile:
    """A safetensors file that is being written: tensors in any order, whole or in pieces."""

    def __init__(self, file: BinaryIO, layout: Layout, metadata: Mapping[str, str] | None) -> None:
        self._file = file
        self._starts: dict[str, int] = {}
        self._missing = {
            name: ELEMENT_BYTES[dtype] * math.prod(shape) for name, (dtype, shape) in layout.items()
        }
        header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
        end = 0
        for name, (dtype, shape) in layout.items():
            start, end = end, end + self._missing[name]
            self._starts[name] = start
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self._data = file.tell()

    def write(self, name: str, data: bytes | bytearray | memoryview, *, offset: int = 0) -> None:
        """Write bytes of a tensor. offset: where they begin in the tensor. Raises OSError."""
        self._file.seek(self._data + self._starts[name] + offset)
        self._file.write(data)
        self._missing[name] -= memoryview(data).nbytes

    def check(self) -> None:
        """Raise ValueError unless all bytes of all tensors were written."""
        for name, count in self._missing.items():
            if count:
                raise ValueError(f"{name}: {count:,} bytes are missing")


@contextlib.contextmanager
def streamed_file(
    path: Path, layout: Layout, *, metadata: Mapping[str, str] | None = None
) -> Iterator[StreamedFile]:
    """Open a file that is written in pieces and appears whole, see `whole_file`.

    layout: type (its name in a header) and shape by tensor. Raises OSError if the file cannot be written, ValueError if
    bytes are missing at the end of the block.
    """
    with whole_file(path) as file:
        streamed = StreamedFile(file, layout, metadata)
        yield streamed
        streamed.check()
