"""What is written about a configuration: YAML, the digest of its latents, and the meaning of a setting."""

import hashlib
import json
from collections.abc import Mapping

from vinfinity.config.schema import plain_text
from vinfinity.config.settings import RunConfig, declared
from vinfinity.config.sources import Resolved, check_key, leaves, literal
from vinfinity.errors import InputError, one_line


def to_yaml(config: RunConfig, *, origins: Mapping[str, str] | None = None) -> str:
    """The configuration as YAML that `load` reads back to an equal one.

    With `origins`, a comment above each value that is not the default names its origin.
    """
    from vinfinity.config.yaml import write_yaml

    lines: list[str] = []
    open_group = ""
    for key, value in leaves(config).items():
        group, _, name = key.rpartition(".")
        if group != open_group:
            lines.append(f"{group}:")
            open_group = group
        origin = (origins or {}).get(key, "default")
        entry = [f"# {one_line(origin)}"] if origin != "default" else []
        entry += write_yaml({name: literal(value)}).rstrip("\n").split("\n")
        lines += [f"{'  ' if group else ''}{line}" for line in entry]
    return "\n".join(lines) + "\n"


def changes_latents(key: str) -> bool:
    """Whether a dotted key changes the latents that a run computes."""
    return declared()[key].latents


def digest(config: RunConfig) -> str:
    """SHA-256 (hex) of every setting that changes the latents: the same on any number of ranks and on any device."""
    values = {key: value for key, value in leaves(config).items() if changes_latents(key)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def explain(resolved: Resolved, key: str) -> list[tuple[str, str]]:
    """What a setting means, what it accepts, and what it is set to, as rows of a table. Raises InputError."""
    try:
        check_key(key, value=key, origin=None)
    except InputError as error:
        raise error.about("--explain") from None
    setting = declared()[key]
    rows = [("setting", key), ("meaning", setting.setting.help), ("type", setting.type)]
    rows += [("range", setting.range)] if setting.range else []
    rows += [
        ("default", setting.default_text),
        ("value", f"{plain_text(leaves(resolved.config)[key])} ({resolved.origins[key]})"),
        ("flag", setting.flags or f"none; set it as {key}=VALUE"),
        ("latents", "changes them" if setting.latents else "does not change them"),
    ]
    return rows
