"""The command line: its groups of commands, and its messages about unknown options and commands."""

import inspect
import re
from collections.abc import Sequence
from typing import Annotated

import typer

from vinfinity import __version__
from vinfinity.cli import batch, bench, doctor, evaluate, make, models, runs
from vinfinity.cli.options import RunCommand
from vinfinity.cli.output import Debug, Invocation
from vinfinity.errors import did_you_mean, one_line
from vinfinity.system.signals import Shutdown

app = typer.Typer(
    name="vinfinity",
    help="Long videos from text, on any number of GPUs, from diffusion models trained on short clips.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=RunCommand)(make.generate)
app.command(cls=RunCommand)(make.plan)
app.command(cls=RunCommand)(make.config)
app.command(cls=RunCommand)(batch.batch)
app.command()(runs.resume)
app.command()(runs.decode)
app.command()(runs.redo)
app.command()(runs.extend)
app.command()(evaluate.evaluate)
app.command()(evaluate.compare)
app.command()(doctor.doctor)
app.add_typer(bench.bench, name="bench")
app.add_typer(models.models, name="models")
for _command in (
    *app.registered_commands,
    *bench.bench.registered_commands,
    *models.models.registered_commands,
):
    # Typer keeps the line breaks of a docstring and wraps the lines again, so make each paragraph one line
    _paragraphs = (inspect.getdoc(_command.callback) or "").split("\n\n")
    _command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in _paragraphs)


def run_command(arguments: Sequence[str] | None, shutdown: Shutdown) -> int:
    """Run the command line (`sys.argv` if None) and return its exit code. shutdown: shutdown requests (signals)."""
    from vinfinity.system.progress import fail, messages_shown

    try:
        with messages_shown():
            code = app(args=arguments, prog_name="vinfinity", standalone_mode=False, obj=Invocation(shutdown))
    except typer.Abort:
        code, message = shutdown.outcome()
        fail(message)
    except typer.TyperException as error:
        fail(_usage_line(error))
        code = error.exit_code
    return code if isinstance(code, int) else 0


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vinfinity {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _vinfinity(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    context.obj.debug = debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _usage_line(error: typer.TyperException) -> str:
    """Return an error of the command line's parser as one line, with a similar option if there is one."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "vinfinity"
    option = getattr(error, "option_name", None)
    if context is not None and option is not None and getattr(error, "possibilities", None) is not None:
        options = [
            name for parameter in context.command.params for name in parameter.opts if name.startswith("--")
        ]
        hint = did_you_mean(option, options) or f"`{command} --help` lists the options"
        return f"{option}: no such option; {hint}"
    message = one_line(error.format_message()).rstrip(".")
    if invalid := re.fullmatch(r"Invalid value for '([^']+)': (?:Value error, )?(.*)", message):
        message = f"{invalid[1]}: {invalid[2]}"
    return f"{message}; see `{command} --help`" if "Did you mean" not in message else message
