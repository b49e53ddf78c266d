"""Commands that make a video, or say what one would be."""

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from vinfinity.cli.options import takes_options
from vinfinity.cli.output import held_interrupts, print_columns, shown
from vinfinity.config import Resolved, RunConfig, ignored, leaves, require_prompt, to_yaml
from vinfinity.stopping import Stops

if TYPE_CHECKING:
    from vinfinity.generate import Summary


@takes_options
def generate(
    resolved: Resolved,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan, but load no weights.")
    ] = False,
) -> None:
    """Generate a video.

    For example: vinfinity generate --prompt "a red ball bouncing over green grass"
    """
    from vinfinity.media.files import check_files
    from vinfinity.progress import warn
    from vinfinity.runs.start import was_restarted

    config = resolved.config
    if was_restarted(os.environ):
        config = dataclasses.replace(config, resume=True)
    require_prompt(config)
    check_files(config)  # before torch is imported, which alone takes seconds
    for sentence in ignored(resolved):
        warn(sentence)
    if dry_run:
        with held_interrupts():
            from vinfinity.job import describe
        print_columns(describe(config))
    else:
        start(config, resolved.origins)


def start(config: RunConfig, origins: Mapping[str, str]) -> None:
    """Runs what a command asked for, or says that it is done already. Raises VinfinityError."""
    from vinfinity.media.files import output_path
    from vinfinity.progress import note
    from vinfinity.runs.start import how_to_start

    if how_to_start(config) == "done":
        note(f"{output_path(config)} is finished; nothing is left to do")
        return
    with Stops().heeded():
        with held_interrupts():
            from vinfinity.generate import run
        summary = run(config, origins)
    if summary is not None:  # ranks other than 0 have nothing to tell
        print_summary(summary)


@takes_options
def config(
    resolved: Resolved,
    yaml: Annotated[bool, typer.Option("--yaml", help="As YAML, for a file that --config reads.")] = False,
) -> None:
    """Show every setting of a run and where its value comes from; generate nothing.

    Takes the options of `generate`. Settings are taken from the defaults, the model, --config, key=value
    arguments and flags; the last of these that names one wins.
    """
    if yaml:
        typer.echo(to_yaml(resolved.config, origins=resolved.origins), nl=False)
    else:
        values = leaves(resolved.config)
        print_columns([(key, shown(value), resolved.origins[key]) for key, value in values.items()])


def print_summary(summary: "Summary") -> None:
    from vinfinity.progress import duration

    width, height = summary.size
    length = f"{summary.frames / summary.fps:.1f} s at {summary.fps} fps"
    rows = [("video", str(summary.out)), ("", f"{summary.frames} frames of {width}x{height}, {length}")]
    if summary.sheet is not None:
        rows.append(("contact sheet", str(summary.sheet)))
    rows.append(("time", f"{duration(summary.seconds)}, {summary.seconds / summary.frames:.2f} s per frame"))
    rows.append(("peak memory", f"{summary.peak_memory / 2**30:.2f} GiB"))
    print_columns(rows)
