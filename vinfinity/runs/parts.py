"""Tensors of a video as a folder of parts: each rank writes its frames, and any number of ranks read them.

    step-0012/frames-000000-000048.safetensors     tensors (1, c, f, h, w) of frames 0 to 47
              frames-000048-000096.safetensors
              manifest.json                        the parts and their SHA-256

The manifest is written last: a folder without one is unfinished. Nothing is gathered on one rank, nothing is pickled.
"""

import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from vinfinity.errors import DamagedError, one_line
from vinfinity.parallel.spans import spans
from vinfinity.runs.folder import MANIFEST
from vinfinity.system.files import MISSING, cannot_read, cannot_write, is_missing, write_whole
from vinfinity.system.safetensors import read_frames, streamed_file

# number of bytes to hash at a time
CHUNK_BYTES = 4 * 2**20
# number of frames to copy at a time
COPIED_FRAMES = 256


@dataclass(frozen=True)
class Part:
    """A file with the frames from `start` up to `stop`, its size in bytes, and its SHA-256 (hex)."""

    file: str
    start: int
    stop: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Parts:
    """A finished folder of parts.

    step: the number of denoising steps done. settings: the identity of the run, see `RunFolder.identity`. tensors: the
    tensors' names. seeds: (start, stop, seed) for each span of frames whose noise has one seed.
    """

    folder: Path
    step: int
    settings: str
    tensors: tuple[str, ...]
    parts: tuple[Part, ...]
    seeds: tuple[tuple[int, int, int], ...]

    @property
    def frames(self) -> int:
        return self.parts[-1].stop

    def read(self, frames: range, *, name: str = "x") -> Tensor:
        """Return frames (contiguous, absolute) of one tensor: (c, f, h, w), fp32, on the CPU.

        Raises DamagedError, or OutputError if a file cannot be read.
        """
        read = []
        for part in self.parts:
            start, stop = max(part.start, frames.start), min(part.stop, frames.stop)
            if start < stop:
                path = self.folder / part.file
                read.append(_read_frames(path, name, range(start - part.start, stop - part.start)))
        return torch.cat(read, dim=1)

    def pick(self, frames: Iterable[int], *, name: str = "x") -> Tensor:
        """Return any frames (ascending, absolute) of one tensor, see `read`."""
        return torch.cat([self.read(span, name=name) for span in spans(frames)], dim=1)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the SHA-256 of all parts."""
        return hashlib.sha256(" ".join(part.sha256 for part in self.parts).encode()).hexdigest()

    def verify(self) -> None:
        """Read all parts. Raises DamagedError if a part has changed, OutputError if it cannot be read."""
        for part in self.parts:
            path = self.folder / part.file
            digest, size = hashlib.sha256(), 0
            with _reading(path), path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
            if size != part.bytes:
                raise DamagedError(f"{path}: is truncated: {size:,} of {part.bytes:,} bytes")
            if digest.hexdigest() != part.sha256:
                raise DamagedError(f"{path}: was changed after it was written (its SHA-256 differs)")


def write_part(folder: Path, held: range, tensors: Mapping[str, Tensor]) -> Part:
    """Write a part with the frames `held`. tensors: name -> (1, c, f, h, w). Raises OutputError."""
    data = save({name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()})
    name = f"frames-{held.start:06d}-{held.stop:06d}.safetensors"
    write_whole(folder / name, data)
    return Part(name, held.start, held.stop, len(data), hashlib.sha256(data).hexdigest())


def _read_frames(path: Path, name: str, frames: range) -> Tensor:
    """Return frames of a tensor in a file of `write_part`: (c, f, h, w).

    Raises DamagedError, or OutputError if the file cannot be read.
    """
    try:
        with _reading(path):
            data, shape = read_frames(path, name, frames)
    except ValueError as error:
        raise DamagedError(f"{path}: cannot be read ({one_line(error)})") from error
    return torch.frombuffer(data, dtype=torch.float32).reshape(shape)


def write_manifest(
    folder: Path,
    parts: Sequence[Part],
    *,
    step: int,
    settings: str,
    tensors: Sequence[str],
    seeds: Sequence[int],
) -> Parts:
    """Write the manifest of parts that together cover all frames. For the arguments see `Parts`.

    seeds: one seed per frame. Raises OutputError.
    """
    parts = sorted(parts, key=lambda part: part.start)
    seed_spans, start = [], 0
    for seed, same in itertools.groupby(seeds):
        seed_spans.append((start, start := start + len(list(same)), seed))
    facts = {
        "step": step,
        "settings": settings,
        "tensors": list(tensors),
        "parts": [asdict(part) for part in parts],
        "seeds": seed_spans,
    }
    write_whole(folder / MANIFEST, json.dumps(facts | {"sha256": _seal(facts)}, indent=1) + "\n")
    return Parts(folder, step, settings, tuple(tensors), tuple(parts), tuple(seed_spans))


def read_manifest(folder: Path) -> Parts:
    """Return the parts of a folder; reads only its manifest.

    Raises DamagedError if the folder is unfinished or the manifest damaged, OutputError if it cannot be read.
    """
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        seal = facts.pop("sha256")
        parts = tuple(Part(**part) for part in facts["parts"])
        seeds = tuple((start, stop, seed) for start, stop, seed in facts["seeds"])
        read = Parts(folder, facts["step"], facts["settings"], tuple(facts["tensors"]), parts, seeds)
    except OSError as error:
        if error.errno in MISSING:
            raise DamagedError(f"{folder}: is unfinished") from None
        raise cannot_read(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: cannot be read ({one_line(error)})") from error
    ends = [0, *(edge for part in parts for edge in (part.start, part.stop))]
    if seal != _seal(facts) or any(end != start for end, start in list(pairwise(ends))[::2]):
        raise DamagedError(f"{path}: was changed after it was written")
    return read


def undamaged_parts(path: Path, *, damaged: Callable[[DamagedError], object]) -> Parts | None:
    """Return the parts in a folder if they are unchanged; delete the folder if it is damaged or unfinished.

    damaged: called with the error if the folder is damaged. A folder without a manifest is only unfinished: its run
    ended while writing it. Raises OutputError, and deletes nothing, if a file cannot be read: it may be intact.
    """
    try:
        parts = read_manifest(path)
        parts.verify()
        return parts
    except DamagedError as error:
        if not is_missing(path / MANIFEST):
            damaged(error)
    shutil.rmtree(path, ignore_errors=True)
    return None


def in_pieces(frames: range) -> Iterator[range]:
    """Split contiguous frames into pieces small enough to copy."""
    for start in range(frames.start, frames.stop, COPIED_FRAMES):
        yield range(start, min(start + COPIED_FRAMES, frames.stop))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise DamagedError if the block finds no file, OutputError if it cannot read it."""
    try:
        yield
    except OSError as error:
        if error.errno in MISSING:
            raise DamagedError(f"{path}: is missing") from None
        raise cannot_read(path, error) from error


def save_whole(parts: Parts, path: Path, *, source: str, name: str) -> None:
    """Write one tensor of all frames, (1, c, F, h, w), to a safetensors file, a bounded number of frames at a time.

    source: the tensor's name in the parts. name: its name in the file. Raises OutputError.
    """
    c, _, h, w = parts.read(range(1), name=source).shape
    try:
        with streamed_file(path, {name: ("F32", (1, c, parts.frames, h, w))}) as file:
            for piece in in_pieces(range(parts.frames)):
                frames = parts.read(piece, name=source)
                for channel in range(c):
                    start = (channel * parts.frames + piece.start) * h * w * frames.itemsize
                    file.write(name, frames[channel].contiguous().numpy().tobytes(), offset=start)
    except OSError as error:
        raise cannot_write(path, error) from error


def _seal(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
