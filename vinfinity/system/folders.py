"""Folders of the user, which need not exist: in a container, a process may run as a user without a home directory."""

import os
import tempfile
from pathlib import Path

from vinfinity.errors import InputError


def expanded(path: str | Path, *, field: str) -> Path:
    """A path with `~` replaced by the home directory. field: the setting that named it. Raises InputError."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        problem = "needs a home directory, and there is none"
        raise InputError(field, path, "write the path without ~, or set HOME", problem=problem) from None


def data_folder() -> Path:
    """The folder of what vinfinity keeps for the user: in XDG_DATA_HOME, or else in ~/.local/share.

    Without a home directory it is a folder of the user in the system's temporary directory.
    """
    try:
        home = Path(os.environ.get("XDG_DATA_HOME", "")).expanduser()
        # the XDG specification has relative paths ignored
        return (home if home.is_absolute() else Path("~/.local/share").expanduser()) / "vinfinity"
    except RuntimeError:
        return _shared_temporary_folder() / f"vinfinity-{os.getuid()}"


def _shared_temporary_folder() -> Path:
    """The system's temporary directory, whether or not it can be written to."""
    return Path(tempfile.gettempdir())
