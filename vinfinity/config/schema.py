"""Declarations of settings, and the checks that follow from them.

A setting is declared in one place:

    frames: int = setting(96, "Length of the video, in frames.", least=1, remedy="use at least 1")

Its type and range are checked, and it gets a flag if it names a panel of `--help`. `vinfinity config --explain`, the
reference pages and the digest of the latents use the same declaration.
"""

import dataclasses
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar, Literal

from vinfinity.errors import CONTROL, InputError, did_you_mean, escaped
from vinfinity.system.numbers import read_number, read_rate

# type -> its name, the problem of a value of another type, and the remedy
TYPES = {
    bool: ("true or false", "is not true or false", "write true or false"),
    int: ("whole number", "is not a whole number", "write it in decimal digits, such as 24"),
    float: ("number", "is not a number", "write it as a decimal number, such as 7.5"),
    str: ("text", "is not text", "put it in quotes"),
    Fraction: ("number or fraction", "is not a frame rate", "write it as 24, 23.976 or 24000/1001"),
}
# the limit of whole numbers that declare none; as frames, more than anyone would wait for
LARGEST_NUMBER = 1_000_000


@dataclass(frozen=True)
class Setting:
    """What a field declares in addition to its type and its default.

    help: the meaning in full sentences, with units. remedy: the advice in the error line for a value out of range.
    least, most: inclusive bounds. above: an exclusive lower bound. form: the accepted form of text, in words. check:
    a function that checks the value and raises InputError. unset: the meaning of the default, if its value does not
    tell. from_model: whether the model has the default. latents: whether the setting changes the latents.
    panel: the panel of `--help` that shows its flag; without one, it is set as KEY=VALUE. short, metavar: the parts of
    its entry in `--help`, as in `-n N`. flag: the name of the flag, if it is not named after the key. command: the only
    command with the flag, if not every command has it.
    """

    help: str
    remedy: str
    least: int | None = None
    most: int | None = None
    above: int | None = None
    form: str | None = None
    check: Callable[[Any], object] | None = None
    unset: str | None = None
    from_model: bool = False
    latents: bool = True
    panel: str | None = None
    flag: str | None = None
    command: str | None = None
    short: str | None = None
    metavar: str | None = None


def setting(default: Any, help: str, *, remedy: str = "", **rest: Any) -> Any:
    """Make a dataclass field for a setting. rest: the other fields of `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help=help, remedy=remedy, **rest)})


def from_model(help: str, *, remedy: str = "", **rest: Any) -> Any:
    """Make a dataclass field for a setting whose default is in the model's card."""
    return setting(MISSING, help, remedy=remedy, unset="the model's", from_model=True, **rest)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that check themselves: every value of a group has its declared type and is in range.

    Subclasses name the prefix of their keys, and whether their settings change the latents. They override `check` to
    check several settings together.
    """

    prefix: ClassVar[str] = ""
    latents: ClassVar[bool] = True

    def __init_subclass__(cls, *, name: str = "", latents: bool = True) -> None:
        cls.prefix = f"{name}." if name else ""
        cls.latents = latents

    def __post_init__(self) -> None:
        for field, kind in _fields(type(self)):
            key = f"{self.prefix}{field.name}"
            value = typed(getattr(self, field.name), kind, key=key)
            object.__setattr__(self, field.name, value)
            if "setting" in field.metadata:
                in_range(value, field.metadata["setting"], key=key)
        self.check()

    def check(self) -> None:
        """Raise InputError if settings of the group contradict each other."""


@dataclass(frozen=True)
class Declared:
    """A setting in the configuration. key: the dotted key. kind: the type. default: MISSING if the model has it."""

    key: str
    kind: Any
    default: Any
    setting: Setting
    latents: bool

    @property
    def flag(self) -> str | None:
        """The option on the command line, such as `--noise-from`; None if there is none."""
        return self.setting.flag or (flag_of(self.key) if self.setting.panel else None)

    @property
    def flags(self) -> str:
        """The flags in words, empty without any."""
        declared = self.setting
        flags = ", ".join(name for name in (self.flag, declared.short) if name is not None)
        return flags if declared.command is None else f"{flags} of vinfinity {declared.command}"

    @property
    def metavar(self) -> str | None:
        """What `--help` shows in place of the value; None for a switch."""
        by_type = {bool: None, int: "N", float: "X", str: "TEXT", Fraction: "N"}.get(bare(self.kind))
        return self.setting.metavar or "|".join(str(choice) for choice in self.choices) or by_type

    @property
    def accepts_null(self) -> bool:
        """Whether it can be null, which for settings of the model restores the model's default."""
        return _optional(self.kind) or self.setting.from_model

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values to choose from; empty if any value of its type is possible."""
        return typing.get_args(bare(self.kind)) if typing.get_origin(bare(self.kind)) is Literal else ()

    @property
    def type(self) -> str:
        """The type in words."""
        return type_in_words(self.kind)

    @property
    def range(self) -> str:
        """The accepted values in words; empty if all values of its type are accepted."""
        declared = self.setting
        most = LARGEST_NUMBER if declared.most is None and bare(self.kind) is int else declared.most
        if declared.least is not None and most is not None:
            return f"{declared.least} to {_bound(most)}"
        if declared.least is not None:
            return f"at least {declared.least}"
        if declared.above is not None:
            return f"more than {declared.above}" + (f", at most {most}" if most is not None else "")
        return declared.form or ""

    @property
    def default_text(self) -> str:
        """The default in words."""
        if self.setting.unset is not None:
            return self.setting.unset
        return "none" if self.default in (None, "", ()) else plain_text(plain(self.default))


def declarations(kind: type[Group]) -> Mapping[str, Declared]:
    """Return dotted key -> declaration for all settings of a group and its subgroups, in order."""
    settings: dict[str, Declared] = {}
    for field, hint in _fields(kind):
        if isinstance(hint, type) and issubclass(hint, Group):
            settings |= declarations(hint)
        else:
            declared: Setting = field.metadata["setting"]
            key = f"{kind.prefix}{field.name}"
            latents = kind.latents and declared.latents
            settings[key] = Declared(key, hint, field.default, declared, latents)
    return settings


def typed(value: Any, kind: Any, *, key: str) -> Any:
    """Return `value` as the type `kind`. Raises InputError if it has another type.

    The only conversions are int to float, list to tuple, mapping to dataclass, and number or text to frame rate.
    """
    if value is None and _optional(kind):
        return None
    kinds = [part for part in _parts(kind) if part is not types.NoneType]
    if len(kinds) > 1 and str in kinds:
        matching = next(
            (part for part in kinds if isinstance(value, part) and not isinstance(value, bool)), None
        )
        if matching is None:
            names = " nor ".join(TYPES[part][0] for part in kinds)
            remedies = ", or ".join(TYPES[part][2] for part in kinds)
            raise InputError(key, value, remedies, problem=f"is neither {names}")
        kind = matching
    kind = bare(kind)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, Group) and isinstance(value, typing.cast(type, kind)):
            return value
        return _built(typing.cast(type, kind), value, key=key)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(key, value, "write it as a list in brackets", problem="is not a list")
        [item, _] = typing.get_args(kind)
        return tuple(typed(entry, item, key=f"{key}[{index}]") for index, entry in enumerate(value))
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        # compare types as well: 1 == True
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        texts = [str(choice) for choice in choices]
        meant, known = did_you_mean(str(value), texts), f"choose from {', '.join(texts)}"
        raise InputError(key, value, f"{meant} ({known})" if meant else known, problem="is not a choice")
    if kind is Fraction:
        rate = read_rate(value)
        if rate is None:
            raise InputError(key, value, TYPES[kind][2], problem=TYPES[kind][1])
        return rate
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        if kind is str:
            _check_text(value, key=key)
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and re.fullmatch(r"[-+]?\.?(inf|nan)", value.lower()):
        # YAML writes infinity as `.inf`, Python as `inf`
        return float(value.lower().replace(".", ""))
    _, problem, remedy = TYPES[kind]
    number = read_number(value) if kind in (int, float) and isinstance(value, str) else None
    if isinstance(number, int) or (number is not None and kind is float):
        remedy = "remove its quotes"
    raise InputError(key, value, remedy, problem=problem)


def _check_text(text: str, *, key: str) -> None:
    """Raise InputError for text that files of settings and tags of videos cannot hold."""
    if "\0" in text:
        raise InputError(key, text, "remove it", problem="contains a null character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(key, text, "write it in UTF-8", problem="is not valid UTF-8") from None


def in_range(value: Any, declared: Setting, *, key: str) -> None:
    """Raise InputError if a value of the right type is out of the declared range."""
    if value is None:
        return
    problem, least, most = "", declared.least, declared.most
    limit = LARGEST_NUMBER if most is None and isinstance(value, int) else most
    if isinstance(value, float) and not math.isfinite(value):
        problem = "is not a finite number"
    elif declared.above is not None and value <= declared.above:
        problem = f"is not more than {declared.above}"
    elif least is not None and most is not None and not least <= value <= most:
        problem = f"is not between {least} and {_bound(most)}"
    elif least is not None and value < least:
        problem = "is negative" if least == 0 else f"is less than {least}"
    elif limit is not None and value > limit:
        raise InputError(key, value, f"use at most {limit}", problem=f"is more than {limit}")
    if problem:
        raise InputError(key, value, declared.remedy, problem=problem)
    if declared.check is not None:
        declared.check(value)


def plain(value: Any) -> Any:
    """Return a value as lists, dicts and scalars, as in YAML and JSON; paths and fractions become text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(entry) for name, entry in vars(value).items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else str(value)
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def plain_text(value: object) -> str:
    """Return a plain value as YAML writes it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(plain_text(entry) for entry in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain_text(entry)}" for key, entry in value.items()) + "}"
    text = str(value) or "(none)"
    return escaped(json.dumps(text, ensure_ascii=False)) if CONTROL.search(text) else text


def type_in_words(kind: Any) -> str:
    """Return a declared type in words, such as `whole number or null`."""
    either, kind = " or null" if _optional(kind) else "", bare(kind)
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(str(choice) for choice in typing.get_args(kind))}{either}"
    if typing.get_origin(kind) is tuple:
        return f"list of {type_in_words(typing.get_args(kind)[0])}{either}"
    if dataclasses.is_dataclass(kind):
        return "{" + ", ".join(field.name for field, _ in _fields(typing.cast(type, kind))) + "}" + either
    return f"{TYPES[kind][0]}{either}"


def flag_of(key: str) -> str:
    """Return the flag that is named after a key: `--noise-from` for `noise_from`."""
    return f"--{key.replace('_', '-')}"


def bare(kind: Any) -> Any:
    """Return a declared type without `| None`."""
    return next(part for part in _parts(kind) if part is not types.NoneType)


def _bound(number: int) -> str:
    return "2^63 - 1" if number == 2**63 - 1 else str(number)


def _optional(kind: Any) -> bool:
    return types.NoneType in _parts(kind)


def _parts(kind: Any) -> tuple[Any, ...]:
    # `Literal[...] | None` is a typing.Union, but `int | None` is a types.UnionType
    union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if union else (kind,)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fields(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    for field in dataclasses.fields(kind):
        yield field, _hints(kind)[field.name]


def _built(kind: type, value: Any, *, key: str) -> Any:
    """Build a dataclass from a mapping of its fields, or from another instance. Raises InputError."""
    values = vars(value) if isinstance(value, kind) else value
    fields = {field.name: (field, hint) for field, hint in _fields(kind)}
    if not isinstance(values, Mapping):
        raise InputError(key, value, f"write {', '.join(fields)}", problem="is not a group of settings")
    for name in values:
        if name not in fields:
            remedy = did_you_mean(str(name), list(fields)) or f"known are {', '.join(fields)}"
            raise InputError(f"{key}.{name}", values[name], remedy, problem="is an unknown setting")
    for name, (field, _) in fields.items():
        if name not in values and field.default is MISSING:
            raise InputError(key, plain_text(plain(dict(values))), f"add `{name}`", problem="is incomplete")
    return kind(
        **{name: typed(entry, fields[name][1], key=f"{key}.{name}") for name, entry in values.items()}
    )
