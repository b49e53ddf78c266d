"""Commands for models: list, show, fetch, convert."""

from pathlib import Path
from typing import Annotated

import typer

from vinfinity.cli.options import DTYPES
from vinfinity.cli.output import Debug, held_interrupts, print_columns, reported
from vinfinity.errors import InputError

models = typer.Typer(help="List, fetch, inspect and convert models.", no_args_is_help=True)


@models.command("list")
def list_models(debug: Debug = False) -> None:
    """The embedded model, those fetched, and those that can be."""
    from vinfinity.weights.card import EMBEDDED
    from vinfinity.weights.registry import KNOWN, local_models

    with reported(debug=debug):
        rows = [(path.name, "embedded", str(path)) for path in sorted(EMBEDDED.iterdir()) if path.is_dir()]
        fetched = {path.name: path for path in local_models()}
        rows += [(name, "here", str(path)) for name, path in fetched.items()]
        for name, known in KNOWN.items():
            if name not in fetched:
                source = f"{known.about}; {known.licence}; {known.source.repo}"
                rows.append((name, f"to fetch, {known.gigabytes:.1f} GB", source))
        print_columns(rows)


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="The model.")], debug: Debug = False
) -> None:
    """What a model's folder holds: architecture, parameters, types, sizes, defaults, problems.

    Reads no weights. Ends with exit code 2 where there is a problem.
    """
    with reported(debug=debug):
        from vinfinity.system.progress import fail
        from vinfinity.weights.card import find_model

        folder = find_model(model)
        with held_interrupts():
            from vinfinity.weights.inspect import describe_model
        rows, problems = describe_model(folder)
        print_columns(rows)
        for problem in problems:
            fail(problem)
        if problems:
            raise typer.Exit(InputError.exit_code)


@models.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="Its name, as `vinfinity models list` shows it.")],
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Another server than the Hugging Face Hub.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Fetch a published model, so that `--model NAME` works from then on, offline too.

    Only the files that are needed; each is checked by its hash. A transfer that broke goes on where it stopped.
    """
    with reported(debug=debug):
        with held_interrupts():
            from vinfinity.weights.hub import fetch
        typer.echo(str(fetch(name, endpoint=endpoint, say=lambda line: typer.echo(line, err=True))))


@models.command("convert")
def convert_model(
    source: Annotated[
        Path, typer.Argument(help="VideoCrafter2's model.ckpt, T2V-Turbo's unet_lora.pt, or a folder.")
    ],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    complete_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER", help="The model to take parts from that SOURCE lacks, such as a tokenizer."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="fp32|fp16|bf16", help="Precision of the weights. [that of SOURCE]")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a model's folder out of published weights in another layout.

    Pickled files are read without running anything in them.
    """
    with reported(debug=debug):
        choices = [choice for choice in DTYPES if choice != "auto"]
        if dtype is not None and dtype not in choices:
            raise InputError("--dtype", dtype, f"choose from {', '.join(choices)}", problem="is not known")
        with held_interrupts():
            from vinfinity.weights.convert import convert
            from vinfinity.weights.dtypes import DTYPES as TYPES
        made = convert(
            source, target, complete_from=complete_from, dtype=None if dtype is None else TYPES[dtype]
        )
        typer.echo(str(made))
