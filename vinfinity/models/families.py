"""The families of models that are supported. Importing this loads no torch."""

import os
from pathlib import Path

from vinfinity.models.family import Family
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.models.wan.family import WAN

FAMILIES: tuple[Family, ...] = (UNET3D, WAN)


def family_of(folder: Path) -> Family | None:
    """The family of the model in `folder`, by the folder of its denoiser, also if that is a broken link; None if there
    is no such folder.
    """
    return next((family for family in FAMILIES if os.path.lexists(folder / family.denoiser)), None)


def published_family(name: str) -> Family | None:
    """The family of a published model; None for names that are not known."""
    return next((family for family in FAMILIES if name in family.published), None)
