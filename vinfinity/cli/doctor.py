"""The command that checks the machine."""

import json
from typing import Annotated

import typer

from vinfinity.cli.options import number
from vinfinity.cli.output import Debug, print_columns, reported
from vinfinity.config import Device
from vinfinity.errors import VinfinityError


def doctor(
    context: typer.Context,
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of ranks of the run to check for.",
            show_default="1, or the ranks of the launcher",
            parser=number(int),
        ),
    ] = None,
    device: Annotated[
        Device, typer.Option(metavar="auto|cuda|cpu", help="Device of the run to check for.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show what this machine has, what a run would use of it, and what is wrong, with a remedy.

    Starts nothing and loads no weights. Exits with code 1 if a run on the machine's best devices could not start or
    finish, and with 0 otherwise; warnings do not count.
    """
    from vinfinity.doctor import report
    from vinfinity.doctor.facts import gather
    from vinfinity.doctor.faults import diagnose

    with reported(context, debug=debug):
        facts = gather(gpus=gpus, device=device)
        faults = diagnose(facts)
        if as_json:
            typer.echo(json.dumps(report.as_json(facts, faults), indent=2))
        else:
            nothing = [("nothing", "no fault was found")]
            sections = {"here": report.here(facts), "used": report.used(facts)}
            sections["wrong"] = report.wrong(faults) or nothing
            for title, rows in sections.items():
                typer.echo(typer.style(title.upper(), dim=True))
                print_columns(rows)
        stopping = sum(fault.stops for fault in faults)
        if stopping:
            raise VinfinityError(f"{stopping} fault{'s' * (stopping > 1)} would stop a run")
