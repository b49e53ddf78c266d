"""Commands that make a video, or say what one would be."""

import dataclasses
import functools
import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from vinfinity.cli.options import takes_options
from vinfinity.cli.output import held_interrupts, print_columns, shown
from vinfinity.config import Resolved, RunConfig, ignored, leaves, require_prompt, to_yaml
from vinfinity.system.signals import Shutdown

if TYPE_CHECKING:
    from vinfinity.run import Summary


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
    from vinfinity.runs.paths import Destination, check_files
    from vinfinity.runs.start import was_restarted
    from vinfinity.system.progress import warn

    config = resolved.config
    if was_restarted(os.environ):
        config = dataclasses.replace(config, resume=True)
    require_prompt(config)
    for sentence in ignored(resolved):
        warn(sentence)
    if dry_run:
        check_files(config, Destination.of(config), overwrite=config.overwrite or config.resume)
        with held_interrupts():
            from vinfinity.job import describe
            from vinfinity.planning.plan import essentials, make_plan
        rows = describe(config)
        plan = make_plan(config)
        print_columns([*rows, *essentials(plan)])
        if plan.refusal is not None:
            raise plan.refusal
    else:
        start(config)


def start(config: RunConfig) -> None:
    """Carry out the run that a command asked for, or say that it is done already. Raises VinfinityError."""
    from vinfinity.runs.paths import Destination
    from vinfinity.runs.start import how_to_start
    from vinfinity.system.progress import note

    destination = Destination.of(config)
    # before torch is imported, which alone takes seconds
    if how_to_start(config, destination) == "done":
        note(f"{destination.video} is finished; nothing to do")
        return
    with Shutdown().handled() as shutdown:
        with held_interrupts():
            from vinfinity.run import run
        shutdown.check()
        summary = run(config, destination, handle_signals=True)
    if summary is not None:  # ranks other than 0 have nothing to tell
        print_summary(summary)


@functools.partial(takes_options, planned=True)
def plan(
    resolved: Resolved,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Plan for GPUs that are not here, such as 'RTX 4090' or 'A100 80GB'."
        ),
    ] = None,
    device_memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Plan for devices with that much memory.", min=0.001),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Show what a run will take, before weights load: memory, disk, messages, arithmetic, time.

    Takes the options of `generate`; neither weights nor GPUs have to be here. Ends with exit code 2 where the run does
    not fit, and says what would.
    """
    with held_interrupts():
        from vinfinity.planning import plan as planning
        from vinfinity.planning.estimate import ASSUMED
    made = planning.make_plan(resolved.config, gpu=gpu, device_memory=device_memory)
    if as_json:
        typer.echo(json.dumps(planning.as_json(made), indent=2))
    else:
        print_columns(planning.table(made))
        if made.run.device == "cuda":
            typer.echo()
            print_columns(planning.time_table(made))
            typer.echo(ASSUMED)
    if made.refusal is not None:
        raise made.refusal


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
    from vinfinity.system.progress import duration

    width, height = summary.size
    length = f"{summary.frames / summary.fps:.1f} s at {summary.fps} fps"
    rows = [("video", str(summary.out)), ("", f"{summary.frames} frames of {width}x{height}, {length}")]
    if summary.sheet is not None:
        rows.append(("contact sheet", str(summary.sheet)))
    rows.append(("time", f"{duration(summary.seconds)}, {summary.seconds / summary.frames:.2f} s per frame"))
    rows.append(("peak memory", f"{summary.peak_memory / 2**30:.2f} GiB"))
    print_columns(rows)
