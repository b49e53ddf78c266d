"""Commands that make a video, or show what a run would do."""

import functools
import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from vinfinity.cli.options import complete_setting, load_planned, number, takes_options
from vinfinity.cli.output import import_engine, print_columns
from vinfinity.config import (
    Resolved,
    RunConfig,
    explain,
    leaves,
    name_sources,
    plain_text,
    require_prompt,
    to_yaml,
)
from vinfinity.errors import InputError
from vinfinity.parallel.place import find_place
from vinfinity.system.signals import Shutdown

if TYPE_CHECKING:
    from vinfinity.job import Job
    from vinfinity.runs.folder import RunFolder
    from vinfinity.runs.paths import Destination
    from vinfinity.runs.start import Start
    from vinfinity.task import Summary


@takes_options
def generate(
    shutdown: Shutdown,
    resolved: Resolved,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan, without loading weights.")
    ] = False,
) -> None:
    """Generate a video.

    For example: vinfinity generate --prompt "a red ball bouncing over green grass"
    """

    with name_sources(resolved.origins):
        require_prompt(resolved.config)
        if dry_run:
            show_plan(resolved)
        else:
            start(resolved, shutdown)


def show_plan(resolved: Resolved) -> None:
    """Print what a run would do and what it would take. Raises InputError if it is refused or does not fit."""
    from vinfinity.runs.sources import check_sources
    from vinfinity.system.progress import warn

    config, destination, status = settle(resolved.config)
    if status == "done":
        return
    for concern in check_sources(config, destination.folder if status == "resume" else None):
        warn(concern)
    import_engine()
    from vinfinity.job_report import describe
    from vinfinity.planning.plan import make_plan
    from vinfinity.planning.report import essentials
    from vinfinity.run import make_task

    job = make_task(config, destination).job
    plan = make_plan(job.config, place=find_place(os.environ))
    print_columns([("start", _how(status, job, destination.folder)), *describe(job), *essentials(plan)])
    if plan.refusal is not None:
        raise plan.refusal


def _how(status: "Start", job: "Job", folder: "RunFolder") -> str:
    """Return how a run starts, and what becomes of an existing run. job: the job of the checked run."""
    if status == "resume" and job.config.resume:
        return f"resumes the run in {folder.path}" if job.denoise else f"decodes the latents in {folder.path}"
    replaces = folder.record() is not None or folder.holds_work()
    return f"replaces the run in {folder.path}" if replaces else "new"


def settle(config: RunConfig, *, replaces: bool = True) -> "tuple[RunConfig, Destination, Start]":
    """Decide how a run starts and which files it writes; print a note if it is finished. Raises InputError.

    replaces: see `settle_start`. Does not import torch, which takes seconds.
    """
    from vinfinity.runs.paths import Destination
    from vinfinity.runs.start import check_done, settle_start
    from vinfinity.system.progress import note

    destination = Destination.of(config)
    config, status = settle_start(config, destination, replaces=replaces)
    if status == "done":
        check_done(config, destination)
        note(f"{destination.video} is finished; nothing to do")
    return config, destination, status


def start(resolved: Resolved, shutdown: Shutdown, *, replaces: bool = True) -> None:
    """Start the run that a command describes, unless it is finished. replaces: see `settle_start`.

    Raises VinfinityError.
    """
    with name_sources(resolved.origins):
        config, destination, status = settle(resolved.config, replaces=replaces)
        if status == "done":
            return
        import_engine()
        from vinfinity.run import run

        summary = run(config, destination, replaces=replaces, shutdown=shutdown)
    if summary is not None:
        # only rank 0 has a summary
        print_summary(summary)


@functools.partial(takes_options, resolve=load_planned)
def plan(
    _: Shutdown,
    resolved: Resolved,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="GPU to plan for, such as 'RTX 4090' or 'A100 80GB'. This machine need not have one.",
            show_default="the GPUs of this machine",
        ),
    ] = None,
    device_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="Memory of each device to plan for.",
            show_default="that of the GPU",
            parser=number(float, least=0.001),
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show what a run takes: memory, disk space, messages, arithmetic, time.

    Takes the options of `generate`, and needs neither weights nor GPUs. Exits with code 2 if the run does not fit,
    and suggests settings that do.
    """
    import_engine()
    from vinfinity.planning import report
    from vinfinity.planning.estimate import ASSUMPTIONS
    from vinfinity.planning.plan import make_plan

    with name_sources(resolved.origins):
        planned = make_plan(resolved.config, gpu=gpu, device_memory=device_memory)
        if as_json:
            typer.echo(json.dumps(report.as_json(planned), indent=2))
        else:
            print_columns(report.table(planned))
            if planned.run.device == "cuda":
                for name, part in planned.passes:
                    typer.echo(f"\n{name}" if name else "")
                    print_columns(report.time_table(part))
                typer.echo(ASSUMPTIONS)
        if planned.refusal is not None:
            raise planned.refusal


@takes_options
def config(
    _: Shutdown,
    resolved: Resolved,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the settings as YAML, for a file that --config reads.")
    ] = False,
    explained: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="KEY",
            help="Print the meaning, type, range, default and value of one setting.",
            show_default="all settings, with their values alone",
            autocompletion=complete_setting,
        ),
    ] = None,
) -> None:
    """Show every setting of a run and the origin of its value; generate nothing.

    Takes the options of `generate`. A value comes from the defaults, the model, the source video, --config, KEY=VALUE
    arguments or flags; the last of these that sets it takes precedence.
    """
    if explained is not None and yaml:
        raise InputError("--explain", explained, "remove one of the two", problem="conflicts with --yaml")
    if explained is not None:
        print_columns(explain(resolved, explained))
    elif yaml:
        typer.echo(to_yaml(resolved.config, origins=resolved.origins), nl=False)
    else:
        values = leaves(resolved.config)
        print_columns([(key, plain_text(value), resolved.origins[key]) for key, value in values.items()])


def print_summary(summary: "Summary") -> None:
    """Print what a run made."""
    from vinfinity.system.numbers import shown_rate
    from vinfinity.system.progress import duration

    width, height = summary.size
    length = f"{float(summary.frames / summary.fps):.1f} s at {shown_rate(summary.fps)} fps"
    rows = [("video", str(summary.out)), ("", f"{summary.frames} frames of {width}x{height}, {length}")]
    if summary.sheet is not None:
        rows.append(("contact sheet", str(summary.sheet)))
    rows.append(("time", f"{duration(summary.seconds)}, {summary.seconds / summary.frames:.2f} s per frame"))
    if summary.figures is not None and summary.figures.change is not None:
        seams = summary.figures.seam_ratio
        between = "" if seams is None else f"; {seams:.2f} times that at borders"
        rows.append(("change", f"{summary.figures.change:.2f} of 255 levels per frame{between}"))
        rows += [("warning", warning) for warning in summary.figures.warnings]
    rows.append(("peak memory", f"{summary.peak_memory / 2**30:.2f} GiB"))
    print_columns(rows)
