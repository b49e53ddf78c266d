"""Output files, checked before anything is computed: a bad name must not cost an hour of computing."""

import os
import re
from pathlib import Path

from vinfinity.errors import CONTROL, InputError
from vinfinity.system.folders import check_working_directory

# what helps where a file exists
REMEDY = "choose another name or add --overwrite"


def check_output(field: str, path: Path, *, overwrite: bool, remedy: str = REMEDY) -> None:
    """Raise InputError if no file can be written to `path`. Creates nothing.

    field: what named it. overwrite: accept a file that exists. remedy: what helps otherwise.
    """
    _check_place(field, path)
    if os.path.isdir(path):
        raise InputError(field, path, "name a file inside it", problem="is a folder")
    if os.path.exists(path) and not overwrite:
        raise InputError(field, path, remedy, problem="already exists")


def check_output_folder(
    field: str, path: Path, *, overwrite: bool, own: re.Pattern[str], remedy: str = REMEDY
) -> None:
    """Raise InputError if `path` cannot become a folder of files with names that match `own`. Creates nothing.

    overwrite: accept a folder with such files, but with no others: they would be deleted. An empty folder is accepted.
    remedy: what helps otherwise.
    """
    _check_place(field, path, inside="0" * 12)
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise InputError(field, path, "choose another name", problem="must be a folder, but is a file")
    # the new folder is made next to it and then renamed
    target = Path(os.path.realpath(path))
    _check_place(field, target, inside="0" * 12)
    if os.path.ismount(target):
        raise InputError(field, path, "name a new folder inside it", problem="is a mount point")
    try:
        names = sorted(os.listdir(path))
    except OSError:
        remedy = "choose another name or change its permissions"
        raise InputError(field, path, remedy, problem="cannot be read") from None
    foreign = next((name for name in names if not own.fullmatch(name)), None)
    if foreign is not None:
        raise InputError(field, path, "choose another name", problem=f"holds other files, such as {foreign}")
    if names and not overwrite:
        raise InputError(field, path, remedy, problem="already exists")


def check_folder(field: str, path: Path, *, inside: str) -> None:
    """Raise InputError if `path` cannot become a folder that holds the path `inside`. Creates nothing."""
    _check_place(field, path, inside=inside)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise InputError(field, path, "choose another name", problem="must be a folder, but is a file")


def _check_place(field: str, path: Path, *, inside: str = "") -> None:
    """Raise InputError if the name of a path cannot be used or stored, or if nothing can be created in its folder."""
    check_working_directory()
    whole = path.absolute()
    other = "choose another name"
    try:
        str(whole).encode()
    except UnicodeEncodeError:
        raise InputError(field, path, other, problem="is not valid UTF-8") from None
    if CONTROL.search(str(whole)):
        raise InputError(
            field, path, other, problem="has a line break or another control character in its name"
        )
    folder = whole.parent
    # a path with names that are too long does not exist either
    while not os.path.lexists(folder):
        folder = folder.parent
    if not os.path.isdir(folder):
        raise InputError(field, path, "choose another folder", problem=f"lies in {folder}, which is a file")
    _check_length(field, path, whole, limits=folder, inside=inside)
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = "choose another folder or change its permissions"
        raise InputError(field, path, remedy, problem=f"lies in {folder}, which is not writable")


def _check_length(field: str, path: Path, whole: Path, *, limits: Path, inside: str) -> None:
    """Raise InputError if an absolute path, or one of its names, is too long for the file system of `limits`."""
    name = max((len(os.fsencode(part)) for part in whole.parts), default=0)
    most = os.pathconf(limits, "PC_NAME_MAX")
    if name > most:
        problem = f"has a name of {name} bytes, but its file system allows {most}"
        raise InputError(field, path, "choose a shorter name", problem=problem)
    total = len(os.fsencode(whole / inside))
    # without the terminating zero byte
    most = os.pathconf(limits, "PC_PATH_MAX") - 1
    if total > most:
        problem = f"needs paths of up to {total} bytes, but its file system allows {most}"
        raise InputError(field, path, "choose a shorter path", problem=problem)
