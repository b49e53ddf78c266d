"""Settings for Python code, completed from the model's card. Imports no torch."""

from pathlib import Path
from typing import Any

from vinfinity.config import RunConfig, load
from vinfinity.media.source import video_defaults
from vinfinity.system.folders import expanded
from vinfinity.weights.card import model_defaults


def load_config(path: str | Path | None = None, /, **settings: Any) -> RunConfig:
    """The settings of a run from an optional YAML file and keyword arguments; the model's card gives the rest.

    settings: any setting by name, groups as mappings or dotted keys: `frames=96`, `attention={"local": 4}` or
    `**{"attention.local": 4}`. Raises InputError, with the same message as the command line.
    """
    file = None if path is None else expanded(path, field="config")
    return load(file, settings=settings, card=model_defaults, video=video_defaults).config
