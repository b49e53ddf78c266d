"""What became of the videos of a batch: a line of JSON for each, in the folder of the batch."""

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
    """NAME.batch.jsonl: one line per video that was made or that failed, in order, over all calls of the batch.

    jobs: what this call is to the launchers that may start it again, see `jobs_of`.
    """

    path: Path
    jobs: Mapping[str, str]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from the same batch. Raises BusyError, or OutputError if it cannot be created."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                remedy = "wait for it, or share the videos among processes with --part"
                raise BusyError(f"{self.path}: another process makes these videos; {remedy}") from None
            except OSError:
                # no file locks on this file system: continue without; each video has its own lock
                pass
            yield

    def add(self, event: str, video: str, **facts: object) -> None:
        """Append a line. event: `made` or `failed`. Raises OutputError."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = to_json({"time": now, "event": event, "video": video, **facts, "jobs": self.jobs})
        try:
            # one call, so that lines never mix
            number = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(number, f"{line}\n".encode())
            finally:
                os.close(number)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def size(self) -> int:
        """Bytes so far: where the lines of this call will begin."""
        return self.path.stat().st_size if self.path.exists() else 0

    def entries(self, *, since: int = 0) -> Mapping[str, Mapping[str, Any]]:
        """The last line of each video, in the order of their first lines. since: bytes to leave out."""
        if not self.path.exists():
            return {}
        with self.path.open("rb") as file:
            file.seek(since)
            lines = file.read().splitlines()
        found: dict[str, Mapping[str, Any]] = {}
        for line in lines:
            # a kill may have cut off a line
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                found[entry["video"]] = entry
        return found
