"""The settings of a run, completed from its model's card. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vinfinity.config import Resolved, RunConfig, complete, load
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
    resolved = load(path, overrides=overrides, flags=flags)
    defaults, origin = model_defaults(resolved.config.model, planned=planned)
    return complete(resolved, defaults, origin=origin)


def load_config(path: str | Path | None = None, /, **settings: Any) -> RunConfig:
    """The settings of a run from an optional YAML file and keyword arguments; the model's card fills the rest.

    settings: any setting by name, groups as mappings or dotted keys: `frames=96`, `attention={"local": 4}` or
    `**{"attention.local": 4}`. Raises InputError, with the same message as the command line.
    """
    return resolve(None if path is None else Path(path).expanduser(), flags=dict(_flat(settings))).config


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += _flat(value, prefix=f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat.append((f"{prefix}{name}", [str(x) if isinstance(x, Path) else x for x in value]))
        else:
            flat.append((f"{prefix}{name}", str(value) if isinstance(value, Path) else value))
    return flat
