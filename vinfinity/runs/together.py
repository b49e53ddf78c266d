"""Folders of parts that all ranks write together."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from vinfinity.errors import VinfinityError
from vinfinity.parallel.ranks import Ranks
from vinfinity.runs.parts import Part, Parts, write_manifest, write_part

T = TypeVar("T")
# frames, and their tensors (1, c, f, h, w) by name
FrameTensors = tuple[range, Mapping[str, Tensor]]


def write_together(
    folder: Path,
    pieces: Iterable[FrameTensors],
    *,
    ranks: Ranks,
    settings: str,
    tensors: Sequence[str],
    step: int = 0,
    seeds: Sequence[int] = (),
    before: Sequence[Part] = (),
) -> Parts:
    """Write this rank's pieces, then on rank 0 the manifest. Returns once it is on disk, or has failed, on all ranks.

    before: parts that are already in the folder. For the other arguments see `write_manifest`. If a rank cannot write
    its pieces, or cannot read what they are made of, its error is raised on every rank.
    """
    written: list[Part] | VinfinityError
    try:
        written = [write_part(folder, frames, piece) for frames, piece in pieces]
    except VinfinityError as error:
        written = error
    parts = [*before, *(part for result in ranks.all_gather(written) for part in _checked(result))]
    manifest: Parts | VinfinityError | None = None
    if ranks.is_first:
        try:
            manifest = write_manifest(
                folder, parts, step=step, settings=settings, tensors=tensors, seeds=seeds
            )
        except VinfinityError as error:
            manifest = error
    result = _checked(ranks.all_gather(manifest)[0])
    assert result is not None
    return result


def _checked(result: T | VinfinityError) -> T:
    if isinstance(result, VinfinityError):
        raise result
    return result
