"""The beginning of a run on all its ranks: who may use the folder, and where to go on."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from vinfinity.config import RunConfig, to_yaml
from vinfinity.errors import InputError
from vinfinity.parallel.ranks import Ranks
from vinfinity.runs.folder import RunFolder, run_folder
from vinfinity.runs.paths import output_path
from vinfinity.runs.start import Start, anchored, how_to_start


@contextlib.contextmanager
def opened(
    config: RunConfig, ranks: Ranks, *, facts: Mapping[str, str], record: Mapping[str, object]
) -> Iterator[tuple[RunFolder, Start]]:
    """Holds the run's folder until the block ends; tells every rank whether to start or to go on.

    facts: what all ranks must have in common. record: what is known of the run beforehand, for run.json.
    Raises RankError where ranks differ, BusyError where another run uses the folder, InputError where a run of other
    settings or weights is there, or where not all ranks see the folder.
    """
    folder = run_folder(output_path(config))
    with held(folder, ranks, facts=facts):
        start: Start | None = None
        if ranks.first:
            start = how_to_start(config)
            if start == "new":
                begin(folder, config, ranks, record)
            elif start == "resume":
                check_same(folder, facts)
            folder.event("started", how=start, ranks=ranks.size, version=record["version"])
        start = ranks.collect(start)[0]
        assert start is not None
        for rank, seen in enumerate(ranks.collect(folder.settings.is_file())):
            if not seen:
                remedy = "put the video on a file system that all nodes share"
                raise InputError("out", folder.path, remedy, problem=f"is not seen by rank {rank}")
        yield folder, start


@contextlib.contextmanager
def held(folder: RunFolder, ranks: Ranks, *, facts: Mapping[str, str]) -> Iterator[None]:
    """Keeps other runs from the folder until the block ends on all ranks, which must have the facts in common."""
    with contextlib.ExitStack() as locks:
        if ranks.first:
            locks.enter_context(folder.locked(first=True))
        ranks.agree(facts)  # the others come behind rank 0
        if not ranks.first:
            locks.enter_context(folder.locked(first=False))
        yield


def begin(folder: RunFolder, config: RunConfig, ranks: Ranks, record: Mapping[str, object]) -> None:
    """Makes the folder that of a new run. Raises OutputError."""
    settings = to_yaml(dataclasses.replace(anchored(config), gpus=ranks.size))
    folder.begin(settings=settings, record=record)


def check_same(folder: RunFolder, facts: Mapping[str, str]) -> None:
    """Raises InputError where the weights are no longer those that the run began with."""
    began = (folder.record() or {}).get("weights")
    if began != facts["weights"]:
        remedy = "put the former ones back, or start anew with --overwrite"
        raise InputError("model", folder.path, remedy, problem="was begun with other weights")
