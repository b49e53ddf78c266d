"""Packages of optional extras, imported on use. If one is missing, the error names the install command."""

import importlib
from types import ModuleType

from vinfinity.errors import InputError, one_line

# the extra that brings each package
EXTRA_OF = {"cv2": "evaluate", "scenedetect": "evaluate", "transformers": "consistency"}


def load_extra(package: str, *, field: str = "evaluate", value: object = "") -> ModuleType:
    """Return a package of an extra. field, value: what asked for it. Raises InputError if it cannot be imported."""
    extra = EXTRA_OF[package]
    remedy = f"pip install '.[{extra}]' in a clone of vinfinity"
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = error.name or package
        raise InputError(
            field, value or missing, remedy, problem=f"needs the package {missing}, which is not installed"
        ) from None
    except ImportError as error:
        problem = f"needs the package {package}, which cannot be imported ({one_line(error)})"
        raise InputError(
            field, value or package, f"{remedy}, in a fresh environment", problem=problem
        ) from None


def check_extras() -> None:
    """Raise InputError unless everything that `vinfinity evaluate` needs can be imported."""
    for package in ("cv2", "scenedetect"):
        load_extra(package)
