"""Files that appear whole or not at all, and are on disk when the call returns; lists of files in folders."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from vinfinity.errors import OutputError, escaped, one_line

# the beginning of the names of temporary files
TEMPORARY = ".vinfinity-"
# the errors that prove that there is no file; a drive that fails for a moment raises others
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def temporary(path: Path, kind: str = "part") -> Path:
    """Return the hidden name next to `path` under which it is written. It is short, however long the name is."""
    digest = hashlib.blake2s(os.fsencode(path.name), digest_size=6).hexdigest()
    return path.with_name(f"{TEMPORARY}{digest}.{kind}")


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file that appears whole, see `whole_file`. Raises OutputError."""
    try:
        with whole_file(path) as file:
            file.write(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that appears, and is on disk, when the block ends without an error. It replaces an older one.

    The file is written under a temporary name, flushed to disk and renamed. Its folder is created if needed. Raises
    OSError.
    """
    unfinished = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def is_missing(path: Path) -> bool:
    """Return whether there is certainly nothing at `path`.

    A path that cannot be examined, as on a failing drive, may exist.
    """
    try:
        path.stat()
    except OSError as error:
        return error.errno in MISSING
    return False


def missing_problem(path: Path, otherwise: str = "does not exist") -> str:
    """Return the problem with a path at which there is nothing: a broken link, or else `otherwise`."""
    return f"is a broken link to {path.readlink()}" if os.path.islink(path) else otherwise


def tree_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files with one of the suffixes in a folder and all folders inside it, in order.

    Links to folders are followed. A folder that is reached twice is listed once, under the first of its names, so that
    loops of links end. Broken links are skipped. Raises OSError for a folder that cannot be read.
    """
    files: list[Path] = []
    visited: set[tuple[int, int]] = set()

    def visit(folder: Path) -> None:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                visit(path)
            elif path.suffix in suffixes and path.is_file():
                files.append(path)

    visit(folder)
    return files


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return JSON that keeps all text readable, except that control characters and line separators are escaped."""
    # line breaks only separate values here: those inside text are escaped already
    lines = json.dumps(value, indent=indent, ensure_ascii=False).split("\n")
    return "\n".join(escaped(line) for line in lines)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk: only then does a rename inside the folder survive a crash."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def reason(error: Exception) -> str:
    """Return what an OSError, or FFmpeg's equivalent, says went wrong, on one line."""
    return one_line(getattr(error, "strerror", None) or error)


def cannot_read(path: Path, error: OSError) -> OutputError:
    """Return the error for a file that seems to exist but could not be read."""
    return OutputError(f"{path}: cannot be read ({error.strerror or error})")


def cannot_write(path: Path, error: Exception) -> OutputError:
    """Return the error for a file that could not be written. error: an OSError, or FFmpeg's equivalent."""
    detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return OutputError(f"{path}: cannot be written ({detail})")
