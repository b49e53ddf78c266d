"""NAME.run beside NAME.mp4: what the run is, what happened to it, and what it has computed so far."""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinfinity.errors import BusyError, InputError
from vinfinity.system.files import cannot_write, write_whole

MANIFEST = "manifest.json"  # what a folder of parts holds; written last
WAIT = 4.0  # seconds that the ranks of a run that was killed may take to be gone


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    config.yaml   all settings, paths made absolute        checkpoints/  states of denoising, the newest last
    run.json      versions, weights, command, figures      latents/      the final latents
    events.jsonl  what happened when, a JSON object a line  decoded.mp4   what is decoded so far, while it is
    log.txt       what the run said                        lock          held while a run uses the folder
    """

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def latents(self) -> Path:
        return self.path / "latents"

    @property
    def decoded(self) -> Path:
        return self.path / "decoded.mp4"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def holds_work(self) -> bool:
        """Whether anything was computed that another run would lose."""
        return (self.latents / MANIFEST).exists() or any(self.checkpoints.glob(f"*/{MANIFEST}"))

    def record(self) -> dict[str, Any] | None:
        """What run.json says, None where there is none. Raises InputError where it cannot be read."""
        path = self.path / "run.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("no JSON object")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            remedy = "start anew with --overwrite"
            raise InputError("run", path, remedy, problem=f"cannot be read ({error})") from None
        return values

    def write_record(self, record: Mapping[str, object]) -> None:
        """Writes run.json. Raises OutputError."""
        write_whole(self.path / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def identity(self) -> str:
        """What tells this run from others: SHA-256 (hex) of config.yaml as it is, "" where there is none.

        Not of the settings that it holds: a later version of vinfinity may know more of them.
        """
        try:
            return hashlib.sha256(self.settings.read_bytes()).hexdigest()
        except OSError:
            return ""

    def begin(self, *, settings: str, record: Mapping[str, object]) -> None:
        """Empties the folder and writes what the run is. settings: config.yaml. Raises OutputError."""
        try:
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "lock":
                    path.unlink()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        write_whole(self.settings, settings)
        self.write_record({**record, "settings": self.identity(), "finished": False})

    def event(self, kind: str, **facts: object) -> None:
        """Adds a line to events.jsonl. An event that cannot be written is no reason to end a run."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": kind, **facts}, ensure_ascii=False)
        with contextlib.suppress(OSError), (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def locked(self, *, first: bool, wait: float = WAIT) -> Iterator[None]:
        """Holds the folder until the block ends. first: the rank that must find nobody else in it; the others join.

        All hold a shared lock; the first one takes it for itself before, which it cannot while any rank of an earlier
        run is left. Raises BusyError where another run has it, OutputError where the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with lock:
            if first:
                self._lock(lock.fileno(), fcntl.LOCK_EX, wait=wait)
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
                lock.flush()
            self._lock(lock.fileno(), fcntl.LOCK_SH, wait=0.0)
            yield

    def _lock(self, number: int, kind: int, *, wait: float) -> None:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(number, kind | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    return  # a file system without locks; there is nothing better to be had on it
                if time.monotonic() > deadline:
                    holder = (self.path / "lock").read_text().strip() or "another process"
                    raise BusyError(
                        f"{self.path}: is in use by another run ({holder}); wait for it, or choose another --out"
                    ) from None
            time.sleep(0.1)


def run_folder(video: Path) -> RunFolder:
    """The folder of the run that makes `video`: NAME.run beside NAME.mp4."""
    return RunFolder(video.with_suffix(".run"))


def find_run(named: Path) -> RunFolder:
    """The folder of a run that is named by itself or by its video. Raises InputError where there is none."""
    path = named.expanduser()
    folder = RunFolder(path.with_suffix(".run") if path.suffix.lower() == ".mp4" else path)
    if not folder.path.is_dir():
        raise InputError("run", named, "name a folder NAME.run, or its video", problem="is no run's folder")
    if folder.record() is None or not folder.settings.is_file():
        missing = "run.json" if folder.settings.is_file() else "config.yaml"
        raise InputError(
            "run", named, "name a folder that `vinfinity generate` made", problem=f"has no {missing}"
        )
    return folder
