"""Text forms of a configuration: YAML, the digest of its latents, and explanations of settings."""

import hashlib
import json
from collections.abc import Mapping

from vinfinity.config.schema import plain_text
from vinfinity.config.settings import RunConfig, declared
from vinfinity.config.sources import Resolved, check_key, leaves, literal
from vinfinity.errors import InputError, one_line


def to_yaml(config: RunConfig, *, origins: Mapping[str, str] | None = None) -> str:
    """Write the configuration as YAML, which `load` reads back as an equal one.

    origins: dotted key -> origin; a comment above each value that is not a default names it. None for no comments.
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
    """Return whether a setting, named by its dotted key, changes the latents of a run."""
    return declared()[key].latents


def digest(config: RunConfig) -> str:
    """Return the SHA-256 (hex) of all settings that change the latents, independent of ranks and devices."""
    values = {key: value for key, value in leaves(config).items() if changes_latents(key)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def explain(resolved: Resolved, key: str) -> list[tuple[str, str]]:
    """Explain a setting as rows of a table: its meaning, accepted values and current value. Raises InputError."""
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
