"""The user's folders, which may not exist: in a container, a process may run as a user without a home directory."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vinfinity.errors import InputError, OutputError


def expanded(path: str | Path, *, field: str) -> Path:
    """Return a path with `~` replaced by the home directory. An unknown `~name` stays as it is, as in a shell.

    field: the setting that holds the path. Raises InputError if there is no home directory.
    """
    written = os.fspath(path)
    meant = os.path.expanduser(written)
    if meant == written and (written == "~" or written.startswith("~/")):
        problem = "needs a home directory, and there is none"
        raise InputError(field, path, "write the path without ~, or set HOME", problem=problem)
    return Path(meant)


def absolute(path: Path) -> Path:
    """Return the absolute path of a file, by whatever way it is named: its folder has no links and no `..`.

    The last name stays, even if it is a link. Raises InputError for a relative path in a deleted working directory.
    """
    if not path.is_absolute():
        check_working_directory()
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def data_folder() -> Path:
    """Return the folder of the data that vinfinity keeps for the user: in XDG_DATA_HOME, or else in ~/.local/share.

    If neither is accessible, for instance without a home directory or with another user's, it is a folder in the
    temporary directory.
    """
    for name in (os.environ.get("XDG_DATA_HOME", ""), "~/.local/share"):
        try:
            folder = Path(name).expanduser() / "vinfinity"
            # relative paths are ignored, as the XDG specification requires
            if folder.is_absolute():
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    folder.stat()
                return folder
        except (RuntimeError, OSError):
            continue
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"vinfinity-{os.getuid()}"


def check_working_directory() -> None:
    """Raise InputError if the working directory was deleted: relative paths have no meaning, and torch cannot load."""
    try:
        os.getcwd()
    except FileNotFoundError:
        problem = "no longer exists"
        raise InputError(
            "working directory", os.environ.get("PWD", "."), "change to another directory", problem=problem
        ) from None


def check_temporary_directory() -> None:
    """Raise OutputError if there is no directory for temporary files, which torch needs."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise _no_temporary_files(error) from None


def _never(_: BaseException) -> bool:
    return False


@contextlib.contextmanager
def temporary_folder(*, kept: Callable[[BaseException], bool] = _never) -> Iterator[Path]:
    """Create a folder for the block, and delete it at the end.

    kept: whether to keep the folder after an error that ends the block. Raises OutputError if it cannot be created.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="vinfinity-"))
    except OSError as error:
        raise _no_temporary_files(error) from None
    stays = False
    try:
        yield folder
    except BaseException as error:
        stays = kept(error)
        raise
    finally:
        if not stays:
            shutil.rmtree(folder, ignore_errors=True)


def _no_temporary_files(error: OSError) -> OutputError:
    where = os.environ.get("TMPDIR") or "/tmp"
    reason = error.strerror or str(error)
    return OutputError(f"{where}: temporary files cannot be written ({reason}); set TMPDIR to another folder")
