"""The options of a run, generated from the declarations of its settings and shared by its commands."""

import functools
import glob
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from vinfinity.cli.output import Debug, reported
from vinfinity.config import Layer, Resolved, declared, load
from vinfinity.config.settings import FILES
from vinfinity.system.numbers import read_number

T = TypeVar("T", int, float)
# types of options that can be repeated
OPTION_TYPES: Mapping[str, Any] = {"lora": list[str] | None, "prompts": list[Any] | None}
# number of values that an option takes each time, if not one
VALUES_AT_ONCE = {"prompts": 2}
# the largest value of an option that is not a setting of a run
MOST_NUMBER = 1_000_000


class Precision(StrEnum):
    """The precision of weights, as a choice with completion: Typer has no lists of `Literal`."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def number(kind: type[T], *, least: float = 1, most: float = MOST_NUMBER) -> Callable[[str | T], T]:
    """Return a parser of decimal numbers, for options that are not settings of a run."""

    def parse(given: str | T) -> T:
        value = read_number(given) if isinstance(given, str) else given
        if not isinstance(value, int | kind):
            what = "whole number" if kind is int else "number"
            raise typer.BadParameter(f"{given} is not a {what}; write it in decimal digits, such as 24")
        if not least <= value <= most:
            raise typer.BadParameter(f"{given} is not between {least} and {most}")
        return kind(value)

    return parse


def complete_model(incomplete: str) -> list[str]:
    from vinfinity.weights.registry import local_models

    files = glob.glob(f"{glob.escape(incomplete)}*/model_index.json")
    names = ["mini", *(path.name for path in local_models()), *sorted(map(os.path.dirname, files))]
    return [name for name in names if name.startswith(incomplete)]


def complete_from(*choices: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    return [f"{key}=" for key in complete_setting(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    return [key for key in declared() if key.startswith(incomplete)]


def option(
    key: str,
    *,
    help: str | None = None,
    default: str | None = None,
    metavar: str | None = None,
    panel: bool = False,
) -> Any:
    """Return the option for the setting `key`. help, default, metavar: replace those of the declaration.

    All values but switches are passed on as text. vinfinity.config parses them, with the same messages as for files.
    """
    setting = declared()[key]
    shown = default or setting.default_text
    names = [name for name in (setting.flag, setting.setting.short) if name is not None]
    is_switch = setting.kind is bool
    complete = complete_model if key == "model" else complete_from(*setting.choices)
    return typer.Option(
        *names,
        metavar=metavar or setting.metavar,
        help=help or setting.setting.help,
        show_default=False if is_switch else shown,
        autocompletion=complete if setting.choices or key == "model" else None,
        rich_help_panel=setting.setting.panel if panel else None,
    )


Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Any other setting, such as attention.local=4; `vinfinity config` lists them all.",
        show_default=False,
        autocompletion=complete_key,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE.yaml",
        help="File with settings.",
        show_default="none",
        rich_help_panel=FILES,
    ),
]


class RunCommand(TyperCommand):
    """A command with the options of a run. Some are lists of pairs, which Typer lacks but its parser supports."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            parameter.nargs = VALUES_AT_ONCE.get(parameter.name or "", parameter.nargs)


def load_planned(settings: Sequence[str] | None, config: Path | None, given: Mapping[str, Any]) -> Resolved:
    """Return the configuration, also for published models that have not been fetched. Raises InputError."""
    return loader(settings, config, given, planned=True)(None)


def load_options(settings: Sequence[str] | None, config: Path | None, given: Mapping[str, Any]) -> Resolved:
    """Return the configuration that options resolve to. Raises InputError."""
    return loader(settings, config, given)(None)


def loader(
    settings: Sequence[str] | None, config: Path | None, given: Mapping[str, Any], *, planned: bool = False
) -> Callable[[Layer | None], Resolved]:
    """Return a function that merges a row of a batch, or None, into the configuration that options resolve to.

    The layers are defaults, model card, YAML file, KEY=VALUE settings, flags, and the row. planned: accept published
    models that have not been fetched, see `planned_card`.
    """
    from vinfinity.media.source import video_defaults
    from vinfinity.weights.card import model_defaults

    # a switch that is off or an empty list was not given
    flags = {key.replace("__", "."): value for key, value in given.items() if value not in (False, None, [])}
    if "prompts" in flags:
        flags["prompts"] = [{"at": at, "text": text} for at, text in flags["prompts"]]
    card = functools.cache(functools.partial(model_defaults, planned=planned))
    return lambda row: load(
        config, overrides=settings or (), flags=flags, row=row, card=card, video=video_defaults
    )


def takes_options(
    command: Callable[..., None],
    *,
    resolve: Callable[..., Any] = load_options,
    texts: Mapping[str, Mapping[str, str]] | None = None,
    without: Collection[str] = (),
    first: Collection[str] = (),
) -> Callable[..., None]:
    """Give a command the options of a run. It is called with shutdown requests and the result of `resolve`.

    The command's own parameters come after these two, and after all others in `--help`. texts: by setting, the help,
    default and metavar of its option in this command. without: settings without an option. first: the command's own
    parameters that come before all others, such as an argument before KEY=VALUE.
    """
    parameters = list(inspect.signature(command).parameters.values())[2:]

    def with_options(
        *, context: typer.Context, debug: bool, settings: list[str] | None, config: Path | None, **given: Any
    ) -> None:
        extra = {parameter.name: given.pop(parameter.name) for parameter in parameters}
        with reported(context, debug=debug) as shutdown:
            command(shutdown, resolve(settings, config, given), **extra)

    functools.update_wrapper(with_options, command, assigned=("__module__", "__name__", "__doc__"))
    # Typer reads a command's parameters from its signature
    with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            _parameter("context", typer.Context, inspect.Parameter.empty),
            *_keyword_only(parameter for parameter in parameters if parameter.name in first),
            _parameter("settings", Settings, None),
            *_options(texts or {}, without),
            *_keyword_only(parameter for parameter in parameters if parameter.name not in first),
        ]
    )
    return with_options


def _keyword_only(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]


def _options(texts: Mapping[str, Mapping[str, str]], without: Collection[str]) -> list[inspect.Parameter]:
    """Return the options of all settings that have one in `--help`, with --config and --debug."""
    parameters = []
    for key, setting in declared().items():
        if setting.setting.panel is not None and key not in without:
            kind: Any = bool if setting.kind is bool else OPTION_TYPES.get(key, str | None)
            default = False if kind is bool else None
            # Python names have no dots
            name = key.replace(".", "__")
            parameters.append(
                _parameter(name, Annotated[kind, option(key, panel=True, **texts.get(key, {}))], default)
            )
    return [*parameters, _parameter("config", ConfigFile, None), _parameter("debug", Debug, False)]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
