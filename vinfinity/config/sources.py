"""The sources of values, from the defaults to keyword arguments.

The last of these layers that names a value determines it:

    defaults < the model's card < the source video < YAML file (after its `base`) < what a command chooses
             < key=value arguments < flags < keyword arguments < row

A row belongs to a batch and holds the settings that distinguish its video from the others.

Only this package uses OmegaConf. It is imported inside functions, which keeps `vinfinity --help` fast.
"""

import contextlib
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vinfinity.config.schema import bare, flag_of, in_range, plain, typed
from vinfinity.config.settings import RunConfig, declared
from vinfinity.errors import InputError, did_you_mean
from vinfinity.system.numbers import read_number

# Finds the settings of a model's card by dotted key, and the card's name as their origin. Raises InputError.
Card = Callable[[str], tuple[Mapping[str, object], str]]
# Finds frames, size and fps of the source video, and its name as their origin, from its path and the configured fps
# (None for its own). Raises InputError.
Video = Callable[[str, Fraction | None], tuple[Mapping[str, object], str]]
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Layer:
    """Values by dotted key, and their origin."""

    origin: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Resolved:
    """A configuration and the origin of each value: dotted key -> `default`, `model mini`, `--seed`, ..."""

    config: RunConfig
    origins: Mapping[str, str]


def load(
    yaml: Path | None,
    *,
    chosen: Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    row: Layer | None = None,
    card: Card | None = None,
    video: Video | None = None,
) -> Resolved:
    """Merge all layers into a configuration. Raises InputError.

    chosen: dotted key -> value that a command chooses unless an argument names one, such as another seed for a redo.
    overrides: `key=value` arguments. flags: dotted key -> value or its text, None for a flag that was not given.
    settings: values from Python code by key, dotted or nested. row: see `read_row`. card: finds the settings of the
    chosen model; without it, the layers must have every setting that a model's card usually has. video: reads the
    source video; without it, the video is not opened.

    In YAML, values may refer to others in OmegaConf's syntax, as in `out: videos/${seed}.mp4`.
    """
    defaults = {key: plain(setting.default) for key, setting in declared().items()}
    layers = [Layer("default", {key: value for key, value in defaults.items() if value is not MISSING})]
    if yaml is not None:
        layers += _read_yaml(yaml)
    layers.append(Layer("default", {key: literal(value) for key, value in (chosen or {}).items()}))
    layers.append(Layer(COMMAND_LINE, _parse_overrides(overrides)))
    for key, value in (flags or {}).items():
        if value is not None:
            flag = declared()[key].flag or flag_of(key)
            read = _read_text(key, value, origin=flag) if isinstance(value, str) else literal(value)
            layers.append(Layer(flag, {key: read}))
    layers.append(Layer("argument", _python_values(settings or {})))
    layers += [] if row is None else [row]
    layers = _apply_nulls(layers)
    inherited = [] if card is None else [_card_layer(card, layers)]
    inherited += [] if video is None else _video_layer(video, layers)
    layers[1:1] = inherited
    origins = {key: layer.origin for key in declared() for layer in layers if key in layer.values}
    with name_sources(origins):
        return Resolved(RunConfig(**_merge(layers)), origins)


@contextlib.contextmanager
def name_sources(origins: Mapping[str, str]) -> Iterator[None]:
    """Add the origin of the value to an InputError that the block raises.

    A flag that is not named after its setting replaces the key: users know `--frames`, not `edit.redo`.
    """
    try:
        yield
    except InputError as error:
        key = error.field.partition("[")[0]
        origin = origins.get(key, "default")
        if origin == "default" or error.source is not None:
            raise
        renamed = origin.startswith("--") and origin != flag_of(key)
        raise (error.about(origin) if renamed else error.from_source(origin)) from error


def check_key(key: str, *, value: object, origin: str | None) -> None:
    """Raise InputError if there is no setting of that name."""
    if key in declared():
        return
    inside = next((known for known in declared() if known.startswith(f"{key}.")), None)
    if inside is not None:
        remedy = f"name one of its settings, such as {inside}"
        raise InputError(key, value, remedy, problem="is a group", source=origin)
    remedy = did_you_mean(key, list(declared())) or "`vinfinity config` lists all settings"
    raise InputError(key, value, remedy, problem="is an unknown setting", source=origin)


def leaves(config: RunConfig) -> dict[str, object]:
    """Return dotted key -> value for all settings in order, as plain types."""
    return _flat(plain(config))


def nested(values: Mapping[str, object]) -> dict[str, Any]:
    """Return a mapping of groups: the reverse of `leaves`."""
    groups: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (groups.setdefault(group, {}) if group else groups)[name] = value
    return groups


def literal(value: object) -> object:
    """Escape `value` so that OmegaConf takes it literally, without resolving references."""
    if isinstance(value, list | tuple):
        return [literal(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: literal(entry) for key, entry in value.items()}
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<!\\)(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)


def read_row(values: Mapping[Any, Any], *, origin: str, written: bool) -> Layer:
    """Turn a row of a batch into a layer. values: settings by key, dotted or nested. Raises InputError.

    origin: the row's name in messages. written: whether values are text that has to be parsed, as in CSV.
    """
    flat = _flat({name: plain(value) for name, value in values.items()})
    for key, value in flat.items():
        check_key(key, value=value, origin=origin)
    if written:
        return Layer(origin, {key: _read_text(key, str(text), origin=origin) for key, text in flat.items()})
    return Layer(origin, {key: literal(value) for key, value in flat.items()})


# ---- layers: dotted keys and plain values ----


def _flat(values: Mapping[Any, Any], *, prefix: str = "") -> dict[str, object]:
    """Flatten a nested mapping to dotted keys. Lists, such as those of phases, are one value."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        is_group = any(known.startswith(f"{key}.") for known in declared())
        if isinstance(value, Mapping) and (value or is_group):
            flat |= _flat(value, prefix=f"{key}.")
        elif value is not None or not is_group:
            # in YAML, a group whose lines are all commented out is null
            flat[key] = value
    return flat


def _apply_nulls(layers: Sequence[Layer]) -> list[Layer]:
    """Apply nulls: a null for a setting of the model removes itself and all lower-priority values."""
    nulls = {
        key: index
        for index, layer in enumerate(layers)
        for key, value in layer.values.items()
        if value is None and declared()[key].setting.from_model
    }
    return [
        layer
        if layer.origin == "default"
        else Layer(layer.origin, {k: v for k, v in layer.values.items() if index > nulls.get(k, -1)})
        for index, layer in enumerate(layers)
    ]


def _card_layer(card: Card, layers: Sequence[Layer]) -> Layer:
    """Return the settings of the model that the other layers choose. Raises InputError."""
    with name_sources({"model": next(layer.origin for layer in reversed(layers) if "model" in layer.values)}):
        model = typed(_merge(layers, only="model")["model"], str, key="model")
        in_range(model, declared()["model"].setting, key="model")
        values, origin = card(model)
    for key, value in values.items():
        check_key(key, value=value, origin=origin)
    return Layer(origin, {key: literal(value) for key, value in values.items() if value is not None})


def _video_layer(video: Video, layers: Sequence[Layer]) -> list[Layer]:
    """Return the settings of the source video that the other layers choose, if there is one. Raises InputError."""
    key = "input.video"
    origins = {name: layer.origin for layer in layers for name in layer.values}
    with name_sources(origins):
        path = typed(_merge(layers, only=key)[key], str | None, key=key)
        if path is None:
            return []
        fps = _merge(layers, only="fps")["fps"] if "fps" in origins else None
        values, origin = video(path, _rate(fps))
    return [Layer(origin, {key: literal(value) for key, value in values.items()})]


def _rate(value: object) -> Fraction | None:
    """Return a frame rate above 0; None if there is none, or if it is invalid, which is reported later."""
    try:
        rate = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        return None
    return rate if rate > 0 else None


def _merge(layers: Sequence[Layer], *, only: str | None = None) -> dict[str, Any]:
    """Merge the layers into one nested mapping and resolve references such as `${seed}`. Raises InputError.

    only: the only key whose value is needed; None for all keys.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    raw = {key: value for layer in layers for key, value in layer.values.items()}
    if only is None:
        for key in declared():
            if key not in raw:
                remedy = f"set it, as in {key}=VALUE, or use a model whose card has it"
                raise InputError(key, "none given", remedy)
    if only is not None and "${" not in str(raw[only]):
        # without references: merging everything takes 10 ms, which would add up over the rows of a batch
        return {only: raw[only]}
    try:
        merged = OmegaConf.merge(*(nested(layer.values) for layer in layers))
        if only is not None:
            return {only: OmegaConf.select(merged, only)}
        values = typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise InputError(
            key or "configuration",
            raw.get(key, ""),
            "refer to another key as ${seed}, or write \\${ for a literal ${",
            problem=f"cannot be resolved ({str(error).splitlines()[0]})",
        ) from error
    for key, value in raw.items():
        # OmegaConf's marker of a missing value, which may also be a prompt
        if value == "???":
            group, _, name = key.rpartition(".")
            (values[group] if group else values)[name] = value
    return values


# ---- YAML files ----


def _read_yaml(path: Path, *, above: tuple[Path, ...] = ()) -> list[Layer]:
    """Read the layers of a YAML file: those of its base, then its own. Raises InputError."""
    resolved = Path(os.path.realpath(path))
    field = "base" if above else "--config"
    if resolved in above:
        chain = " -> ".join(file.name for file in (*above, resolved))
        raise InputError("base", path, "remove one of the `base` lines", problem=f"is circular ({chain})")
    if not os.path.isfile(path):
        remedy = "check the path" + (f" (it is relative to {above[-1]})" if above else "")
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise InputError(field, path, remedy, problem=problem)
    values = _read_mapping(path, field=field)
    base = values.pop("base", None)
    layers: list[Layer] = []
    if base is not None:
        if not isinstance(base, str):
            raise InputError("base", base, "name one YAML file", problem="is not a path", source=str(path))
        layers = _read_yaml(path.parent / base, above=(*above, resolved))
    settings = _flat(values)
    for key, value in settings.items():
        check_key(key, value=value, origin=str(path))
    return [*layers, Layer(str(path), settings)]


def _read_mapping(path: Path, *, field: str) -> dict[Any, Any]:
    """Read the mapping in a YAML file without resolving references. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "check its permissions and encoding (UTF-8)"
        raise InputError(field, path, remedy, problem="cannot be read") from error
    values = parse_yaml(path, text, field=field)
    # an empty file
    values = {} if values is None else values
    if not isinstance(values, dict):
        remedy = "write it as lines of `key: value`"
        raise InputError(field, path, remedy, problem="is not a mapping of keys to values")
    return values


def parse_yaml(path: Path, text: str, *, field: str, most: int | None = None) -> Any:
    """Parse the text of a YAML file. Raises InputError.

    field: the setting or option that names the file. most: the largest number of values in it, None for the default.
    """
    from vinfinity.config.yaml import MOST_VALUES, read_yaml

    try:
        return read_yaml(text, most=most or MOST_VALUES)
    except Exception as error:
        # PyYAML's errors have no common base class
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        problem = f"is not valid YAML{where} ({what})"
        raise InputError(field, path, "correct the file", problem=problem) from error


# ---- the command line and Python ----


def _parse_overrides(overrides: Sequence[str]) -> dict[str, object]:
    """Parse `key=value` arguments by dotted key. Raises InputError."""
    values: dict[str, object] = {}
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals:
            remedy = "write settings as key=value, such as attention.local=4, and a prompt as --prompt TEXT"
            raise InputError("argument", argument, remedy, problem="is not a setting")
        check_key(key, value=text, origin=COMMAND_LINE)
        values[key] = _read_text(key, text, origin=COMMAND_LINE)
    return values


def _read_text(key: str, text: str, *, origin: str) -> object:
    """Parse the text given for `key`: kept as it is if the setting takes text, else a decimal number or YAML."""
    setting = declared()[key]
    kind = bare(setting.kind)
    if text == "null" and setting.accepts_null:
        return None
    if kind is str or any(isinstance(choice, str) for choice in setting.choices):
        # a prompt may contain colons or braces, or be just `no`
        return literal(text)
    if kind is Fraction:
        # read_rate also reads numbers, and decimals exactly
        return text
    if kind in (int, float) or setting.choices:
        number = read_number(text)
        # anything else is rejected later, and shown as it was written
        return number if isinstance(number, int) or (kind is float and number is not None) else text
    from vinfinity.config.yaml import read_yaml

    try:
        return read_yaml(text)
    except Exception as error:
        # PyYAML's errors have no common base class
        remedy = "check its brackets, and quote it for the shell"
        raise InputError(key, text, remedy, problem="is not valid YAML", source=origin) from error


def _python_values(settings: Mapping[str, object]) -> dict[str, object]:
    """Flatten values from Python code to dotted keys. Raises InputError.

    Groups may be mappings or dataclasses, and paths may be `Path`.
    """
    values = {}
    for key, value in _flat({name: plain(value) for name, value in settings.items()}).items():
        check_key(key, value=value, origin=None)
        values[key] = literal(plain(value))
    return values
