"""Commands for models: list, show, fetch, convert."""

from pathlib import Path
from typing import Annotated

import typer

from vinfinity.cli.options import Precision
from vinfinity.cli.output import Debug, import_engine, print_columns, reported
from vinfinity.errors import InputError
from vinfinity.system.signals import Reaction

models = typer.Typer(help="List, fetch, inspect and convert models.", no_args_is_help=True)


@models.command("list")
def list_models(context: typer.Context, debug: Debug = False) -> None:
    """List the embedded model, fetched models, and models that can be fetched."""
    from vinfinity.weights.card import EMBEDDED
    from vinfinity.weights.registry import PUBLISHED, local_models

    with reported(context, debug=debug):
        rows = [(path.name, "embedded", str(path)) for path in sorted(EMBEDDED.iterdir()) if path.is_dir()]
        fetched = {path.name: path for path in local_models()}
        rows += [(name, "fetched", str(path)) for name, path in fetched.items()]
        for name, model in PUBLISHED.items():
            if name not in fetched:
                source = f"{model.about}; {model.licence}; {model.source.repo}"
                rows.append((name, f"to fetch, {model.gigabytes:.1f} GB", source))
        print_columns(rows)


@models.command("show")
def show_model(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="Name of the model, or its folder.")],
    debug: Debug = False,
) -> None:
    """Show what a model folder contains: architecture, parameters, types, sizes, defaults, problems.

    Loads no weights. Exits with code 2 if there is a problem.
    """
    with reported(context, debug=debug):
        from vinfinity.system.progress import fail
        from vinfinity.weights.card import find_model

        folder = find_model(model)
        import_engine()
        from vinfinity.weights.inspect import describe_model

        rows, problems = describe_model(folder)
        print_columns(rows)
        for problem in problems:
            fail(problem)
        if problems:
            raise typer.Exit(InputError.exit_code)


@models.command("fetch")
def fetch_model(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the model, as `vinfinity models list` shows it.")
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Server to fetch from.", show_default="the Hugging Face Hub"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Fetch a published model. From then on, `--model NAME` works even offline.

    Fetches only the files it needs, and checks the hash of each. An interrupted download is resumed.
    """
    with reported(context, debug=debug) as shutdown:
        import_engine()
        shutdown.reaction = Reaction.UNWIND
        from vinfinity.weights.hub import fetch

        typer.echo(str(fetch(name, endpoint=endpoint, say=lambda line: typer.echo(line, err=True))))


@models.command("convert")
def convert_model(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="VideoCrafter2's model.ckpt, T2V-Turbo's unet_lora.pt, a file of Wan's transformer, or a folder.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to create.")],
    complete_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="Model that supplies the parts that SOURCE lacks, such as a tokenizer.",
            show_default="none",
        ),
    ] = None,
    dtype: Annotated[
        Precision | None,
        typer.Option(
            metavar="fp32|fp16|bf16", help="Precision of the weights.", show_default="that of SOURCE"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Convert published weights in another layout to a model folder.

    Pickled files are read without executing the code in them.
    """
    with reported(context, debug=debug) as shutdown:
        from vinfinity.weights.card import find_model
        from vinfinity.weights.named_files import check_conversion

        check_conversion(source, target)
        if complete_from is not None:
            find_model(complete_from)
        import_engine()
        shutdown.reaction = Reaction.UNWIND
        from vinfinity.weights.convert import convert
        from vinfinity.weights.dtypes import DTYPES

        torch_dtype = None if dtype is None else DTYPES[dtype]
        typer.echo(str(convert(source, target, complete_from=complete_from, dtype=torch_dtype)))
