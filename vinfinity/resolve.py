"""The settings of a run, with the model's card among their sources. Imports no torch."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vinfinity.config import Resolved, RunConfig, load
from vinfinity.weights.card import model_defaults


def resolve(
    path: Path | None,
    *,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    planned: bool = False,
) -> Resolved:
    """The settings from defaults, the model's card, a YAML file, `key=value` overrides and flags; later ones win.

    planned: accept published models that were not fetched yet. Raises InputError.
    """
    return load(path, overrides=overrides, flags=flags, card=partial(model_defaults, planned=planned))


def load_config(path: str | Path | None = None, /, **settings: Any) -> RunConfig:
    """The settings of a run from an optional YAML file and keyword arguments; the model's card fills the rest.

    settings: any setting by name, groups as mappings or dotted keys: `frames=96`, `attention={"local": 4}` or
    `**{"attention.local": 4}`. Raises InputError, with the same message as the command line.
    """
    file = None if path is None else Path(path).expanduser()
    return load(file, settings=settings, card=model_defaults).config
