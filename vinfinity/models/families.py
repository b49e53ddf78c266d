"""The supported model families. Importing this does not load torch."""

import os
from pathlib import Path

from vinfinity.models.family import Family
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.models.wan.family import WAN

FAMILIES: tuple[Family, ...] = (UNET3D, WAN)


def family_of(folder: Path) -> Family | None:
    """Return the family whose denoiser has a folder, or a broken link to one, in `folder`; None if there is none."""
    return next((family for family in FAMILIES if os.path.lexists(folder / family.denoiser)), None)


def published_family(name: str) -> Family | None:
    """Return the family of a published model, or None for an unknown name."""
    return next((family for family in FAMILIES if name in family.published), None)
