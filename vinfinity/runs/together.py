"""Folders of parts that all ranks write together."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from vinfinity.errors import VinfinityError
from vinfinity.parallel.ranks import Ranks
from vinfinity.runs.parts import Part, Parts, write_manifest, write_part

T = TypeVar("T")
# frames, and their tensors (1, c, f, h, w)
Piece = tuple[range, Mapping[str, Tensor]]


def write_together(
    folder: Path,
    pieces: Iterable[Piece],
    *,
    ranks: Ranks,
    settings: str,
    tensors: Sequence[str],
    step: int = 0,
    seeds: Sequence[int] = (),
    before: Sequence[Part] = (),
) -> Parts:
    """Each rank writes its pieces, then rank 0 the manifest; all ranks wait until it is on disk, or has failed.

    before: parts that are in the folder already. The others: see `write_manifest`. Raises the error, on every rank, of
    a rank that cannot write its pieces, or cannot read what they are made of.
    """
    written: list[Part] | VinfinityError
    try:
        written = [write_part(folder, frames, piece) for frames, piece in pieces]
    except VinfinityError as error:
        written = error
    parts = [*before, *(part for result in ranks.all_gather(written) for part in _checked(result))]
    manifest: Parts | VinfinityError | None = None
    if ranks.first:
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
