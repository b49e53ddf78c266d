"""Weight files in the layout of a model's authors, one network each, in one file or in shards."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.errors import WeightsError
from vinfinity.models.checkpoint import CheckpointPart
from vinfinity.models.families import FAMILIES
from vinfinity.models.family import Family
from vinfinity.weights.dtypes import TORCH_TYPES, WEIGHT_TYPES
from vinfinity.weights.load import listed
from vinfinity.weights.named_files import PICKLES
from vinfinity.weights.tensor_files import TensorFile, read_tensor_file

SHARD = re.compile(r"(.+)-\d+-of-\d+")


@dataclass(frozen=True)
class OriginalPart:
    """One network in its authors' layout. files: its shards."""

    family: Family
    part: CheckpointPart
    files: Sequence[TensorFile]

    @property
    def layout(self) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape by parameter."""
        types = {name: entry.dtype for file in self.files for name, entry in file.entries.items()}
        return {
            name: (TORCH_TYPES[types[source.name]], self.part.shapes[name])
            for name, source in self.part.sources.items()
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters, one after the other."""
        with contextlib.ExitStack() as opened:
            read: dict[str, Callable[[str], Tensor]] = {}
            for file in self.files:
                read |= dict.fromkeys(file.entries, opened.enter_context(file.open()))
            for name, source in self.part.sources.items():
                yield name, read[source.name](source.name).reshape(self.part.shapes[name])


def find_originals(source: Path) -> list[OriginalPart]:
    """Return the networks in a file, or in the files of a folder, whose layout a family knows.

    Raises WeightsError if a network is incomplete or of an unsupported architecture.
    """
    found = []
    for paths in _groups(source):
        files = [read_tensor_file(path, field="source") for path in paths]
        shapes = {name: entry.shape for file in files for name, entry in file.entries.items()}
        for family in FAMILIES:
            try:
                read = family.read_part(shapes)
            except ValueError as error:
                remedy = "use a model of a supported kind"
                raise WeightsError("source", paths[0], remedy, problem=f"{error}") from None
            if read is None:
                continue
            part, faults = read
            wrong = {entry.dtype for file in files for entry in file.entries.values()} - {*WEIGHT_TYPES}
            if wrong:
                problem = f"has tensors as {wrong.pop()}"
                raise WeightsError("source", paths[0], f"use {', '.join(WEIGHT_TYPES)}", problem=problem)
            if faults:
                problem = f"is not a complete {part.name}: {listed(faults)}"
                raise WeightsError("source", paths[0], "fetch the file again", problem=problem)
            found.append(OriginalPart(family, part, files))
    return found


def _groups(source: Path) -> list[list[Path]]:
    """Return the weight files, with the shards of a network together."""
    suffixes = (".safetensors", *PICKLES)
    if not source.is_dir():
        # lists of unnamed tensors are read elsewhere
        return [[source]] if source.suffix == ".safetensors" else []
    groups: dict[str, list[Path]] = {}
    for path in sorted(source.iterdir()):
        if path.suffix in suffixes and path.is_file():
            match = SHARD.fullmatch(path.stem)
            groups.setdefault(match[1] if match else path.name, []).append(path)
    return list(groups.values())
