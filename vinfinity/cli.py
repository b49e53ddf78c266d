"""The `vinfinity` command.

Nothing here imports torch or OmegaConf at the top, so that `--help` and completion are instant; what a
command needs is imported when it runs. Errors that users can mend are one line on stderr and an exit code
(see errors.py).
"""

import contextlib
import difflib
import functools
import inspect
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from vinfinity import __version__
from vinfinity.config import (
    Device,
    Dtype,
    Resolved,
    Sampler,
    complete,
    ignored,
    known_keys,
    leaves,
    load,
    require_prompt,
    to_yaml,
)
from vinfinity.errors import InputError, VinfinityError

if TYPE_CHECKING:
    from vinfinity.generate import Summary

WIDEST_CELL = 44  # characters; longer ones stand out of their column
INTERRUPTED = 130  # the exit code that shells give Ctrl-C

app = typer.Typer(
    name="vinfinity",
    help="Long videos from text, on any number of GPUs, from diffusion models trained on short clips.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line (`sys.argv` unless given) and ends the process with its exit code."""
    try:
        code = app(args=arguments, prog_name="vinfinity", standalone_mode=False)
    except typer.Abort:
        from vinfinity.progress import fail

        fail("interrupted")
        code = INTERRUPTED
    except typer.TyperException as error:
        from vinfinity.progress import fail

        fail(_usage_line(error))
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


# ---- options that `generate` and `config` share ----


def _complete_model(incomplete: str) -> list[str]:
    from vinfinity.weights.known import local_models

    folders = [str(file.parent) for file in Path().glob(f"{incomplete}*/model_index.json")]
    names = ["mini", *(path.name for path in local_models()), *sorted(folders)]
    return [name for name in names if name.startswith(incomplete)]


def _complete_from(*choices: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def _complete_key(incomplete: str) -> list[str]:
    return [f"{key}=" for key in known_keys() if key.startswith(incomplete)]


SAMPLERS, DEVICES, DTYPES = get_args(Sampler), get_args(Device), get_args(Dtype)
VIDEO, SAMPLING, FILES, MACHINE = "The video", "Sampling", "Files", "The machine"


def _options(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Any other setting, such as attention.local=4; `vinfinity config` lists them.",
            autocompletion=_complete_key,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What the video shows.", rich_help_panel=VIDEO)
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="What it should not show.", rich_help_panel=VIDEO)
    ] = None,
    frames: Annotated[
        str | None, typer.Option("--frames", "-n", metavar="N", help="Its length.", rich_help_panel=VIDEO)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Width and height in pixels.", rich_help_panel=VIDEO),
    ] = None,
    fps: Annotated[
        str | None, typer.Option(metavar="N", help="Frames per second.", rich_help_panel=VIDEO)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="mini|FOLDER|NAME",
            help="The embedded model, a folder in diffusers layout, or a published model.",
            autocompletion=_complete_model,
            rich_help_panel=VIDEO,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:WEIGHT]", help="A LoRA in safetensors; may be repeated.", rich_help_panel=VIDEO
        ),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(metavar="N", help="Same seed, same video, on any machine.", rich_help_panel=SAMPLING),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N", help="Denoising steps.", rich_help_panel=SAMPLING)
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(SAMPLERS),
            help="How noise becomes video.",
            autocompletion=_complete_from(*SAMPLERS),
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="X", help="Weight of the prompt; 1 switches guidance off.", rich_help_panel=SAMPLING
        ),
    ] = None,
    noise_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Start from tensor `noise` (1, 4, frames, h, w) of this file.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.mp4",
            help="The video; without it, one named after the prompt.",
            rich_help_panel=FILES,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.", rich_help_panel=FILES)
    ] = False,
    save_latents: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Keep tensor `latents` (1, 4, frames, h, w) here.",
            rich_help_panel=FILES,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE.yaml", help="Settings to start from.", rich_help_panel=FILES
        ),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="N", help="GPUs to share the video.", rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(DEVICES),
            help="What to compute on.",
            autocompletion=_complete_from(*DEVICES),
            rich_help_panel=MACHINE,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(DTYPES),
            help="Precision.",
            autocompletion=_complete_from(*DTYPES),
            rich_help_panel=MACHINE,
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of unexpected errors.")] = False,
) -> None:
    """The options of a run; only their declarations matter, which `_takes_options` hands to each command.

    Numbers are taken as text: config.py reads them, with the same messages as those of files and KEY=VALUE.
    """


def _takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of a run: it is called with the configuration they resolve to.

    The command's own parameters after the first come behind them on the command line's help.
    """
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    shared = inspect.signature(_options).parameters.values()
    own = list(inspect.signature(command).parameters.values())[1:]

    def with_options(*, context: typer.Context, debug: bool, **given: Any) -> None:
        extra = {parameter.name: given.pop(parameter.name) for parameter in own}
        with _reported(debug=debug or bool(context.obj)):
            command(_resolve(**given), **extra)

    functools.update_wrapper(with_options, command, assigned=("__module__", "__name__", "__doc__"))
    # Typer reads a command's parameters from its signature.
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*shared, *own)]
    with_options.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    return with_options


def _resolve(
    *, settings: list[str] | None, config: Path | None, overwrite: bool, **flags: object
) -> Resolved:
    """The configuration from defaults, model card, YAML file, settings and flags. Raises InputError."""
    from vinfinity.weights.card import model_defaults

    flags = {**flags, "overwrite": overwrite or None, "lora": flags["lora"] or None}
    resolved = load(config, overrides=settings or (), flags=flags)
    defaults, origin = model_defaults(resolved.config.model)
    return complete(resolved, defaults, origin=origin)


# ---- commands ----


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vinfinity {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _vinfinity(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of unexpected errors.")] = False,
) -> None:
    context.obj = debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
@_takes_options
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

    config = resolved.config
    require_prompt(config)
    check_files(config)  # before torch is imported, which alone takes seconds
    for sentence in ignored(resolved):
        warn(sentence)
    with _held_interrupts():
        from vinfinity.generate import run
        from vinfinity.job import describe
    if dry_run:
        _print_columns(describe(config))
    else:
        summary = run(config, resolved.origins)
        if summary is not None:  # ranks other than 0 have nothing to tell
            _print_summary(summary)


@app.command()
@_takes_options
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
        _print_columns([(key, _shown(value), resolved.origins[key]) for key, value in values.items()])


bench = typer.Typer(help="Measure what a run takes.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
def exchange(
    ranks: Annotated[int, typer.Option(metavar="N", help="Ranks to count for.", min=2)] = 8,
    frames: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Frames on each rank; may be repeated. [24 and 288]")
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Pixels of a frame.")] = "512x320",
    local: Annotated[int, typer.Option(help="Frames on either side in the local scope.", min=0)] = 8,
    anchors: Annotated[int, typer.Option(help="Frames spread over the video.", min=0)] = 16,
    timed: Annotated[
        int, typer.Option(metavar="N", help="Also time calls of `model` on this many real ranks.", min=0)
    ] = 0,
    model: Annotated[str, typer.Option(metavar="mini|FOLDER", help="The model to time.")] = "mini",
    rounds: Annotated[int, typer.Option(help="Pairs of calls to time.", min=1)] = 15,
    device: Annotated[str, typer.Option(metavar="|".join(DEVICES), help="What to time on.")] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the figures here.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of unexpected errors.")] = False,
) -> None:
    """What an inner rank sends and how often it waits, for VideoCrafter2's UNet; and what that costs here.

    Counting needs neither weights nor GPUs. With --timed, UNet calls with the exchange and with a rank's own frames
    in its place take turns on real ranks; their ratio is the cost of synchronisation.
    """
    from vinfinity.config import parse_size

    with _reported(debug=debug):
        width, height = parse_size(size)
        with _held_interrupts():
            from vinfinity.insight import exchange as insight
            from vinfinity.models.unet import UNetConfig
            from vinfinity.parallel.context import Scopes

        scopes = Scopes(local=local, anchors=anchors)
        latent = (-(-height // 8), -(-width // 8))
        traffic = [
            insight.count_traffic(
                UNetConfig(fps_cond=True), ranks=ranks, frames=count, latent=latent, scopes=scopes
            )
            for count in frames or (24, 288)
        ]
        _print_columns(insight.traffic_table(traffic))
        typer.echo(
            "one UNet call of an inner rank, both guidance branches, fp16; no wait for the device in it"
        )
        timing = None
        if timed:
            timing = insight.time_exchange(model, ranks=timed, scopes=scopes, rounds=rounds, device=device)
            typer.echo()
            _print_columns(insight.timing_table(timing))
        if out is not None:
            insight.write_json(out, traffic, timing)


@bench.command()
def memory(
    ranks: Annotated[int, typer.Option(metavar="N", help="Ranks that share the video.", min=1)] = 1,
    frames: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Frames on each rank; may be repeated. [64, 288 and 576]"),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Pixels of a frame.")] = "512x320",
    branches: Annotated[int, typer.Option(help="Guidance branches at once.", min=1, max=2)] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the figures here.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of unexpected errors.")] = False,
) -> None:
    """What a call of VideoCrafter2's UNet holds at most, in fp16, traced without weights or GPUs."""
    from vinfinity.config import parse_size

    with _reported(debug=debug):
        width, height = parse_size(size)
        with _held_interrupts():
            from vinfinity.insight import memory as insight
            from vinfinity.models.unet import UNetConfig
            from vinfinity.parallel.context import Scopes

        latent = (-(-height // 8), -(-width // 8))
        footprints = [
            insight.trace_footprint(
                UNetConfig(fps_cond=True),
                ranks=ranks,
                frames=count,
                latent=latent,
                scopes=Scopes(),
                branches=branches,
            )
            for count in frames or (64, 288, 576)
        ]
        _print_columns(insight.footprint_table(footprints))
        if out is not None:
            insight.write_json(out, footprints)


models = typer.Typer(help="List, fetch, inspect and convert models.", no_args_is_help=True)
app.add_typer(models, name="models")
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of unexpected errors.")]


@models.command("list")
def list_models(debug: DEBUG = False) -> None:
    """The embedded model, those fetched, and those that can be."""
    from vinfinity.weights.card import EMBEDDED
    from vinfinity.weights.known import KNOWN, local_models

    with _reported(debug=debug):
        rows = [(path.name, "embedded", str(path)) for path in sorted(EMBEDDED.iterdir()) if path.is_dir()]
        fetched = {path.name: path for path in local_models()}
        rows += [(name, "here", str(path)) for name, path in fetched.items()]
        for name, known in KNOWN.items():
            if name not in fetched:
                source = f"{known.about}; {known.licence}; {known.source.repo}"
                rows.append((name, f"to fetch, {known.gigabytes:.1f} GB", source))
        _print_columns(rows)


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="The model.")], debug: DEBUG = False
) -> None:
    """What a model's folder holds: architecture, parameters, types, sizes, defaults, problems.

    Reads no weights. Ends with exit code 2 where there is a problem.
    """
    with _reported(debug=debug):
        from vinfinity.progress import fail
        from vinfinity.weights.card import find_model

        folder = find_model(model)
        with _held_interrupts():
            from vinfinity.weights.inspect import describe_model
        rows, problems = describe_model(folder)
        _print_columns(rows)
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
    debug: DEBUG = False,
) -> None:
    """Fetch a published model, so that `--model NAME` works from then on, offline too.

    Only the files that are needed; each is checked by its hash. A transfer that broke goes on where it stopped.
    """
    with _reported(debug=debug):
        with _held_interrupts():
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
    debug: DEBUG = False,
) -> None:
    """Make a model's folder out of published weights in another layout.

    Pickled files are read without running anything in them.
    """
    with _reported(debug=debug):
        choices = [choice for choice in DTYPES if choice != "auto"]
        if dtype is not None and dtype not in choices:
            raise InputError("--dtype", dtype, f"choose from {', '.join(choices)}", problem="is not known")
        with _held_interrupts():
            from vinfinity.job import DTYPES as TYPES
            from vinfinity.weights.convert import convert
        made = convert(
            source, target, complete_from=complete_from, dtype=None if dtype is None else TYPES[dtype]
        )
        typer.echo(str(made))


# ---- what is printed ----


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Rows of equal length on stdout, the first column bold and those after the second dim where there is colour."""
    styles: list[dict[str, Any]] = [{"bold": True}, {}, *[{"dim": True}] * (len(rows[0]) - 2)]
    widths = [
        max((len(row[column]) for row in rows if len(row[column]) <= WIDEST_CELL), default=0)
        for column in range(len(rows[0]))
    ]
    for row in rows:
        padding = [*(width - len(cell) for width, cell in zip(widths[:-1], row, strict=False)), 0]
        cells = [
            (typer.style(cell, **style) if cell and style else cell) + " " * spaces
            for cell, spaces, style in zip(row, padding, styles, strict=False)
        ]
        typer.echo("  ".join(cells))


def _shown(value: object) -> str:
    """A setting as it is written in YAML, short ones on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_shown(entry) for entry in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(entry)}" for key, entry in value.items()) + "}"
    return str(value) or "(none)"


def _print_summary(summary: "Summary") -> None:
    from vinfinity.progress import duration

    width, height = summary.size
    length = f"{summary.frames / summary.fps:.1f} s at {summary.fps} fps"
    rows = [("video", str(summary.out)), ("", f"{summary.frames} frames of {width}x{height}, {length}")]
    if summary.sheet is not None:
        rows.append(("contact sheet", str(summary.sheet)))
    rows.append(("time", f"{duration(summary.seconds)}, {summary.seconds / summary.frames:.2f} s per frame"))
    rows.append(("peak memory", f"{summary.peak_memory / 2**30:.2f} GiB"))
    _print_columns(rows)


@contextlib.contextmanager
def _held_interrupts() -> Iterator[None]:
    """Keeps Ctrl-C until the block ends: in the midst of importing torch it may be swallowed, or end in a
    crash."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _reported(*, debug: bool) -> Iterator[None]:
    """Turns errors into one line on stderr and an exit code. `debug` shows the traceback before it."""
    from vinfinity.progress import fail

    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise  # no errors: Typer knows what to do with them
    except KeyboardInterrupt:
        fail("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except VinfinityError as error:
        if debug:
            traceback.print_exc()
        fail(error.message)
        raise typer.Exit(error.exit_code) from error
    except Exception as error:
        if debug:
            traceback.print_exc()
        again = "" if debug else "; run again with --debug for the traceback"
        fail(f"{type(error).__name__}: {' '.join(str(error).split())} ({_place(error)}){again}")
        raise typer.Exit(1) from error


def _place(error: Exception) -> str:
    """File and line of the innermost of our own calls on the way to an error."""
    here = str(Path(__file__).parent)
    calls = traceback.extract_tb(error.__traceback__)
    call = next((call for call in reversed(calls) if call.filename.startswith(here)), calls[-1])
    return f"{Path(call.filename).name}:{call.lineno}"


def _usage_line(error: typer.TyperException) -> str:
    """A mistake in the use of options or commands as one line, with the nearest that exists."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "vinfinity"
    option = getattr(error, "option_name", None)
    if context is not None and option is not None and getattr(error, "possibilities", None) is not None:
        known = [
            name for parameter in context.command.params for name in parameter.opts if name.startswith("--")
        ]
        nearest = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"`{command} --help` lists the options"
        return f"{option}: no such option; {hint}"
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message}; see `{command} --help`" if "Did you mean" not in message else message
