"""The outcome of each video of a batch: a line of JSON for each, in the folder of the batch."""

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinfinity.errors import BusyError
from vinfinity.system.files import cannot_write, to_json

SUFFIX = ".batch.jsonl"


@dataclass(frozen=True)
class Journal:
    """NAME.batch.jsonl: one line for each video that was made or failed, in order, over all calls of the batch.

    path: the file. jobs: each launcher's name for this call, see `jobs_of`.
    """

    path: Path
    jobs: Mapping[str, str]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the batch against other processes. Raises BusyError, or OutputError if the file cannot be created."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                remedy = "wait for it, or split the videos among processes with --part"
                raise BusyError(f"{self.path}: another process makes these videos; {remedy}") from None
            except OSError:
                # this file system has no file locks: continue without one; each video has its own lock
                pass
            yield

    def add(self, event: str, video: str, **facts: object) -> None:
        """Append a line. event: `made` or `failed`. Raises OutputError."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = to_json({"time": now, "event": event, "video": video, **facts, "jobs": self.jobs})
        try:
            # a single write, so that the lines of several processes never mix
            number = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(number, f"{line}\n".encode())
            finally:
                os.close(number)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def size(self) -> int:
        """Return the current size in bytes: where the lines of this call will begin."""
        return self.path.stat().st_size if self.path.exists() else 0

    def entries(self, *, since: int = 0) -> Mapping[str, Mapping[str, Any]]:
        """Return the last line of each video, in the order of their first lines. since: the number of bytes to skip."""
        if not self.path.exists():
            return {}
        with self.path.open("rb") as file:
            file.seek(since)
            lines = file.read().splitlines()
        entries: dict[str, Mapping[str, Any]] = {}
        for line in lines:
            # a line may be incomplete after a kill
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                entries[entry["video"]] = entry
        return entries
