"""Settings for Python code, with defaults from the model's card. Does not import torch."""

from pathlib import Path
from typing import Any

from vinfinity.config import RunConfig, load
from vinfinity.media.source import video_defaults
from vinfinity.system.folders import expanded
from vinfinity.weights.card import model_defaults


def load_config(path: str | Path | None = None, /, **settings: Any) -> RunConfig:
    """Return the settings of a run from an optional YAML file and keyword arguments; the model's card has the rest.

    settings: any setting by name, groups as mappings or dotted keys: `frames=96`, `attention={"local": 4}` or
    `**{"attention.local": 4}`. Raises InputError, with the same message as the command line.
    """
    file = None if path is None else expanded(path, field="config")
    return load(file, settings=settings, card=model_defaults, video=video_defaults).config
