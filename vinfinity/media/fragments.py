"""A partly written MP4: it grows by fragments, is playable at any moment, and can be resumed."""

import contextlib
import json
import os
from pathlib import Path

from vinfinity.system.files import cannot_write, write_whole


class Fragments:
    """The fragments of an MP4 in the file `path`. NAME.json next to it records how much of the file is complete.

    identity: identifies everything that the fragments depend on. Fragments in the file that have the same identity are
    reused, and an incomplete one at the end is cut off; otherwise the file starts empty.

    shown: the path that errors name instead of `path`. frames, bytes: the size of the complete fragments. Raises
    OutputError if the file cannot be written.
    """

    def __init__(self, path: Path, *, identity: str, shown: Path | None = None) -> None:
        self.path, self._identity, self._shown = path, identity, shown or path
        self._record = path.with_suffix(".json")
        self.frames, self.bytes = self._complete()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self.bytes:
                self._record.unlink(missing_ok=True)
            with path.open("ab") as file:
                file.truncate(self.bytes)
        except OSError as error:
            raise cannot_write(self._shown, error) from error

    def add(self, fragment: bytes, *, frames: int) -> None:
        """Append a fragment of `frames` frames; it is on disk when this returns. Raises OutputError."""
        try:
            with self.path.open("r+b") as file:
                file.seek(self.bytes)
                file.write(fragment)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self._shown, error) from error
        self.frames, self.bytes = self.frames + frames, self.bytes + len(fragment)
        record = {"of": self._identity, "frames": self.frames, "bytes": self.bytes}
        write_whole(self._record, json.dumps(record) + "\n")

    def remove(self) -> None:
        """Delete the files."""
        for path in (self.path, self._record):
            with contextlib.suppress(OSError):
                path.unlink()

    def _complete(self) -> tuple[int, int]:
        """Return the frames and bytes of the fragments in the file that can be reused."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if record["of"] == self._identity and self.path.stat().st_size >= record["bytes"]:
                return int(record["frames"]), int(record["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            # no record, or a damaged one
            pass
        return 0, 0
