"""Models by name: the published ones of all families, and the fetched ones."""

import os
from collections.abc import Mapping
from pathlib import Path

from vinfinity.models.families import FAMILIES, published_family
from vinfinity.models.family import PublishedModel
from vinfinity.system.folders import data_folder

PUBLISHED: Mapping[str, PublishedModel] = {
    name: model for family in FAMILIES for name, model in family.published.items()
}


def published_files(name: str) -> dict[str, dict[str, object]]:
    """Return the JSON files of a published model by part, and its card as "card", without fetching anything."""
    known, family = PUBLISHED[name], published_family(name)
    assert family is not None
    parts = {part: {**values, **known.files.get(part, {})} for part, values in family.published_files.items()}
    return parts | {"card": {"name": name, **known.card, **known.files.get("card", {})}}


def models_folder() -> Path:
    """Return the folder of fetched models: vinfinity/models in the user's data folder."""
    return data_folder() / "models"


def local_models() -> list[Path]:
    """Return the folders of the fetched models, in order."""
    folder = models_folder()
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
