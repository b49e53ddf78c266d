"""The videos of a batch, one for each row and seed, all checked before torch is loaded. Imports no torch."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vinfinity.batch.faults import Faults
from vinfinity.batch.names import DEFAULT, Taken, file_name
from vinfinity.batch.rows import Row
from vinfinity.config import Layer, Resolved, RunConfig, leaves, name_sources, require_prompt
from vinfinity.errors import InputError
from vinfinity.runs.paths import Destination, slug
from vinfinity.runs.start import Start, check_done, settle_start
from vinfinity.system.folders import expanded

# maximum number of videos in a batch, because all are planned before the first is made
MOST_VIDEOS = 1_000_000

# returns the configuration of a row: the settings of all rows, with the row's own on top
Loader = Callable[[Layer], Resolved]


@dataclass(frozen=True)
class Item:
    """A video of a batch.

    name: its path inside the folder. origin: how messages name its row. origins: the origin of each of its settings.
    start: whether it is new, resumes, or is finished already.
    """

    name: str
    origin: str
    origins: Mapping[str, str]
    config: RunConfig
    destination: Destination
    start: Start = "new"


@dataclass(frozen=True)
class Batch:
    """The videos that this process makes.

    name: the name of the batch and its part, such as `prompts` or `prompts-3-of-8`. items: the videos of the part.
    total: the number of videos in the whole batch.
    """

    name: str
    folder: Path
    items: tuple[Item, ...]
    total: int


def parse_seeds(text: str) -> range:
    """Return the seeds of a range such as `0:4`, which excludes seed 4. Raises InputError."""
    match = re.fullmatch(r"(0|[1-9][0-9]{0,17}):([1-9][0-9]{0,17})", text)
    seeds = range(0) if match is None else range(int(match[1]), int(match[2]))
    if not seeds:
        problem = "is not a range of seeds" if match is None else "is an empty range"
        raise InputError("--seeds", text, "write it as FROM:TO, such as 0:4", problem=problem)
    return seeds


def parse_part(text: str) -> tuple[int, int]:
    """Return (k, n) of a part such as `3/8`, the third of eight. Raises InputError."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
    if match is None or int(match[1]) > int(match[2]):
        problem = "is not a part" if match is None else "is beyond the last part"
        raise InputError("--part", text, "write it as K/N, from 1/N to N/N, such as 3/8", problem=problem)
    return int(match[1]), int(match[2])


def plan_batch(
    rows: Sequence[Row],
    load: Loader,
    *,
    name: str,
    folder: str | Path,
    seeds: Sequence[int] | None = None,
    part: str | None = None,
) -> Batch:
    """Plan the videos of a batch, of which this process makes one part. Creates no file.

    seeds: each row is made once with each seed. part: `3/8`, for example, is every eighth video from the third on.
    Raises InputError if any row is faulty, including rows of other parts, after logging the faults of the other rows.
    """
    k, n = (1, 1) if part is None else parse_part(part)
    if seeds is not None and len(rows) * len(seeds) > MOST_VIDEOS:
        problem = f"for each of {len(rows)} rows give more than {MOST_VIDEOS} videos"
        raise InputError("seeds", len(seeds), "split them into several batches", problem=problem)
    place, faults = expanded(folder, field="folder"), Faults()
    items = list(_items(rows, load, folder=place, seeds=seeds, faults=faults))
    faults.check()
    changes = Faults()
    planned = [_with_start(item, faults, changes) for item in items[k - 1 :: n]]
    faults.check()
    changes.warn()
    name = name if part is None else f"{name}-{k}-of-{n}"
    return Batch(name, place, tuple(item for item in planned if item is not None), len(items))


@contextlib.contextmanager
def naming_row(origin: str, origins: Mapping[str, str]) -> Iterator[None]:
    """Add the row and the origin of the value to an InputError of the block."""
    try:
        with name_sources(origins):
            yield
    except InputError as error:
        source = error.source
        if source is not None and source.startswith(origin):
            raise
        raise error.from_source(origin if source is None else f"{source}, for {origin}") from error


def _items(
    rows: Sequence[Row], load: Loader, *, folder: Path, seeds: Sequence[int] | None, faults: Faults
) -> Iterator[Item]:
    """Yield the videos of all rows that have no fault."""
    taken, samples = Taken(), Counter[str]()
    for row in rows:
        with faults.noted(), naming_row(row.origin, {}):
            resolved = load(row.layer)
            if seeds is not None and resolved.origins["seed"] != "default":
                with name_sources(resolved.origins):
                    seed, remedy = resolved.config.seed, "remove one of them"
                    raise InputError("seed", seed, remedy, problem="conflicts with --seeds")
            require_prompt(resolved.config)
            for seed in [resolved.config.seed] if seeds is None else seeds:
                config = replace(resolved.config, seed=seed)
                yield _item(row, replace(resolved, config=config), folder, samples[config.first_text], taken)
                samples[config.first_text] += 1


def _item(row: Row, resolved: Resolved, folder: Path, sample: int, taken: Taken) -> Item:
    """Name a video. sample: its number among the videos of the same prompt, from 0. Raises InputError."""
    config, origins = resolved.config, resolved.origins
    values = {
        **leaves(config),
        "index": row.number,
        "sample": sample,
        "slug": slug(config.first_text),
    }
    with naming_row(row.origin, origins):
        name = file_name("out", config.out or DEFAULT, values, origin=row.origin)
        # a Path would lose the slash of a folder of PNG
        files = {"out": f"{folder / name}/" if name.endswith("/") else str(folder / name)}
        if config.save_latents is not None:
            latents = file_name("save_latents", config.save_latents, values, origin=row.origin)
            files["save_latents"] = str(folder / latents)
        config = replace(config, resume=True, **files)  # type: ignore[arg-type]
        destination = Destination.of(config)
        taken.add("out", destination.folder.path, name, origin=row.origin)
        if destination.latents is not None:
            taken.add("save_latents", destination.latents, str(destination.latents), origin=row.origin)
    return Item(name, row.origin, origins, config, destination)


def _with_start(item: Item, faults: Faults, changes: Faults) -> Item | None:
    """Return a video with how it starts, according to the existing files; None if it has a fault.

    --overwrite replaces videos with other settings, and keeps what this batch has made so far. changes: collects
    finished videos that are skipped although their files were made with other settings.
    """
    with faults.noted(), naming_row(item.origin, item.origins):
        config, start = settle_start(item.config, item.destination)
        if start == "done":
            with changes.noted(), naming_row(item.origin, item.origins):
                check_done(config, item.destination)
        return replace(item, config=config, start=start)
    return None
