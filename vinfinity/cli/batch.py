"""The command that makes many videos."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vinfinity.batch.names import DEFAULT
from vinfinity.cli.options import loader, takes_options
from vinfinity.cli.output import import_engine, print_columns
from vinfinity.errors import BatchError
from vinfinity.system.signals import Shutdown

if TYPE_CHECKING:
    from vinfinity.batch.make import BatchSummary
    from vinfinity.batch.plan import Batch, Loader

# the help of options that mean something else for a single video
TEXTS = {
    "prompt": {"help": "Text that describes the videos of rows without a prompt of their own."},
    "out": {
        "help": "Template for the videos' names inside the folder. It may contain {index}, the number of the row; "
        "{slug}, its prompt as a file name; {sample}, the number of the video among those with the same prompt, from "
        "0; and any setting, such as {seed} or {prompt}.",
        "default": DEFAULT,
        "metavar": "TEMPLATE.mp4",
    },
    "overwrite": {"help": "Replace existing files, except videos that are finished with the same settings."},
    "save_latents": {
        "help": "Template for the names of files with the final latents.",
        "metavar": "TEMPLATE.safetensors",
    },
}


@functools.partial(takes_options, resolve=loader, texts=TEXTS, without=("resume",), first=("file",))
def batch(
    shutdown: Shutdown,
    load: "Loader",
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A prompt per line; or rows with any settings in .yaml, .yml, .json, .jsonl, .ndjson, .csv or .tsv.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the videos.",
            show_default="named after FILE, without its ending",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="FROM:TO",
            help="Make each row once with each of these seeds; TO is excluded.",
            show_default="the row's seed",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Make only the K-th of N parts of the videos, as in a SLURM array.",
            show_default="all of them",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list the videos, without loading weights.")
    ] = False,
) -> None:
    """Generate the videos of all rows of a file. Weights are loaded once.

    Finished videos are skipped, and an interrupted one is resumed: after any interruption, run the same command again.
    A video that fails is reported, and the others are made; the exit code is then 100 plus the number of failed videos.
    A row's own settings take precedence over those of all rows, which are the options of `generate`.

    For example: vinfinity batch prompts.txt --seeds 0:4 --frames 64
    """
    from vinfinity.batch.plan import parse_seeds, plan_batch
    from vinfinity.batch.rows import read_rows

    chosen = None if seeds is None else parse_seeds(seeds)
    place = folder if folder is not None else str(file.with_suffix("").name)
    planned = plan_batch(read_rows(file), load, name=file.stem, folder=place, seeds=chosen, part=part)
    import_engine()
    from vinfinity.batch.make import make_batch, prepare_batch

    if dry_run:
        prepare_batch(planned)
        list_videos(planned)
        return
    summary = make_batch(planned, shutdown=shutdown)
    if summary is not None:
        # only rank 0 has a summary
        print_outcome(summary)


def list_videos(batch: "Batch") -> None:
    """Print the videos of a batch, and whether each is new, unfinished or finished."""
    rows = [("video", "", "seed", "frames", "size", "steps", "prompt")]
    states = {"new": "", "resume": "unfinished", "done": "finished"}
    for item in batch.items:
        config = item.config
        figures = (str(config.seed), str(config.frames), config.size, str(config.steps))
        rows.append((item.name, states[item.start], *figures, config.first_text))
    print_columns(rows)


def print_outcome(summary: "BatchSummary") -> None:
    """Print the outcome of a batch. Raises BatchError if videos failed."""
    from vinfinity.system.progress import duration

    made, skipped, failed = len(summary.made), len(summary.skipped), len(summary.failed)
    rows = [("videos", f"{made} made"), ("folder", str(summary.folder))]
    if skipped:
        rows.insert(1, ("", f"{skipped} finished before"))
    each = f", {duration(summary.seconds / made)} per video" if made else ""
    rows.append(("time", f"{duration(summary.seconds)}{each}"))
    print_columns(rows)
    for failure in summary.failed:
        typer.echo(f"failed: {failure.video} ({failure.row}): {failure.message}")
    if failed:
        total = made + skipped + failed
        raise BatchError(f"{failed} of {total} videos failed; the same command retries them", failed=failed)
