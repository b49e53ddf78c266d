"""The options of a run, which its commands share."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from vinfinity.cli.output import Debug, reported
from vinfinity.config import Device, Dtype, Memory, Resolved, Sampler, known_keys


def _complete_model(incomplete: str) -> list[str]:
    from vinfinity.weights.registry import local_models

    folders = [str(file.parent) for file in Path().glob(f"{incomplete}*/model_index.json")]
    names = ["mini", *(path.name for path in local_models()), *sorted(folders)]
    return [name for name in names if name.startswith(incomplete)]


def _complete_from(*choices: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def _complete_key(incomplete: str) -> list[str]:
    return [f"{key}=" for key in known_keys() if key.startswith(incomplete)]


SAMPLERS, DEVICES, DTYPES = get_args(Sampler), get_args(Device), get_args(Dtype)
MEMORIES = get_args(Memory)
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
    decoder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Another autoencoder for the model's latents, such as TAESD.",
            rich_help_panel=VIDEO,
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
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run of this video, where one was begun.", rich_help_panel=FILES
        ),
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
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(MEMORIES),
            help="What to spare: auto takes the fastest way that fits.",
            autocompletion=_complete_from(*MEMORIES),
            rich_help_panel=MACHINE,
        ),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the UNet: minutes at the start, faster steps.", rich_help_panel=MACHINE
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """The options of a run; only their declarations matter, which `takes_options` hands to each command.

    Numbers are taken as text: config.py reads them, with the same messages as those of files and KEY=VALUE.
    """


def takes_options(command: Callable[..., None], *, planned: bool = False) -> Callable[..., None]:
    """Gives a command the options of a run: it is called with the configuration they resolve to.

    The command's own parameters after the first come behind them on the command line's help. planned: published models
    that are not here will do, see `planned_card`.
    """
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    shared = inspect.signature(_options).parameters.values()
    own = list(inspect.signature(command).parameters.values())[1:]

    def with_options(*, context: typer.Context, debug: bool, **given: Any) -> None:
        extra = {parameter.name: given.pop(parameter.name) for parameter in own}
        with reported(debug=debug or bool(context.obj)):
            command(_resolve(**given, planned=planned), **extra)

    functools.update_wrapper(with_options, command, assigned=("__module__", "__name__", "__doc__"))
    # Typer reads a command's parameters from its signature.
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*shared, *own)]
    with_options.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    return with_options


def _resolve(
    *,
    settings: list[str] | None,
    config: Path | None,
    overwrite: bool,
    resume: bool,
    compile: bool,
    planned: bool,
    **flags: object,
) -> Resolved:
    """The configuration from defaults, model card, YAML file, settings and flags. Raises InputError."""
    from vinfinity.resolve import resolve

    switches = {"overwrite": overwrite, "resume": resume, "compile": compile}
    given = {name: True for name, on in switches.items() if on}  # those that are off were not given
    flags = {**flags, **given, "lora": flags["lora"] or None}
    return resolve(config, overrides=settings or (), flags=flags, planned=planned)
