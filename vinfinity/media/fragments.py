"""A video on its way: a file that grows by a fragment at a time, plays at any moment, and can be gone on with."""

import contextlib
import json
import os
from pathlib import Path

from vinfinity.system.files import cannot_write, write_whole


class Fragments:
    """The fragments of one MP4 in the file `path`, and beside it, in NAME.json, how far it is to be trusted.

    of: names all that the fragments depend on. Where the file holds fragments of the same, they are kept, and what
    lies behind them, written when the process ended, is cut off; else the file starts empty.

    frames, bytes: of the fragments there are. Raises OutputError where the file cannot be written.
    """

    def __init__(self, path: Path, *, of: str) -> None:
        self.path, self._of = path, of
        self._record = path.with_suffix(".json")
        self.frames, self.bytes = self._kept()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self.bytes:
                self._record.unlink(missing_ok=True)
            with path.open("ab") as file:
                file.truncate(self.bytes)
        except OSError as error:
            raise cannot_write(path, error) from error

    def add(self, fragment: bytes, *, frames: int) -> None:
        """Adds a fragment of so many frames; when this returns, it is on the disk. Raises OutputError."""
        try:
            with self.path.open("r+b") as file:
                file.seek(self.bytes)
                file.write(fragment)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.frames, self.bytes = self.frames + frames, self.bytes + len(fragment)
        record = {"of": self._of, "frames": self.frames, "bytes": self.bytes}
        write_whole(self._record, json.dumps(record) + "\n")

    def remove(self) -> None:
        """Removes the files."""
        for path in (self.path, self._record):
            with contextlib.suppress(OSError):
                path.unlink()

    def _kept(self) -> tuple[int, int]:
        """Frames and bytes of the fragments that are to be kept."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if record["of"] == self._of and self.path.stat().st_size >= record["bytes"]:
                return int(record["frames"]), int(record["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or it says nothing that could be gone on with
        return 0, 0
