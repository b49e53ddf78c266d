"""NAME.run beside the video NAME.mp4: the settings of a run, its history, and what it has computed so far."""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinfinity.config.formats import container_of
from vinfinity.errors import BusyError, InputError
from vinfinity.system.files import MISSING, TEMPORARY, cannot_write, is_missing, to_json, write_whole
from vinfinity.system.folders import expanded

# the contents of a folder of parts; written last
MANIFEST = "manifest.json"
# how the names of run folders end
SUFFIX = ".run"
# versions, weights, command, figures
RECORD = "run.json"
# what a run writes into its folder, apart from temporary files, and the longest path in it
OWN_NAMES = frozenset({RECORD, "config.yaml", "events.jsonl", "log.txt", "lock", "checkpoints", "latents"})
OWN_NAMES |= {"input", "pictures", "decoded.mp4", "decoded.json", "preview", "preview.webp", "preview.png"}
OWN_NAMES |= {"first-pass.mp4", "first-pass.run"}
LONGEST_PATH = "first-pass.run/checkpoints/step-1000/frames-999999-1000000.safetensors"
# seconds that the ranks of a killed run may take to exit
EXIT_SECONDS = 4.0


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    config.yaml   all settings, with absolute paths        checkpoints/  states of denoising, newest last
    run.json      versions, weights, command, figures      latents/      the final latents
    events.jsonl  history, one JSON object per line        decoded.mp4   frames decoded so far, while decoding
    log.txt       messages of the run                      lock          locked while a run uses the folder
    input/        latents of the video to start from       pictures/     latents of the first and the last frame
    preview.webp  the video as predicted so far            preview.png   the same as a contact sheet
    first-pass.mp4, first-pass.run  the first of two passes and its run folder
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
    def input(self) -> Path:
        return self.path / "input"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def first_pass(self) -> Path:
        return self.path / "first-pass.mp4"

    @property
    def decoded(self) -> Path:
        """The seconds of its video that are encoded, while it is decoded."""
        return self.path / "decoded.mp4"

    def decoded_of(self, video: Path) -> Path:
        """The same of another video that is made from the run; a file for each, so that none takes another's place."""
        digest = hashlib.blake2s(os.fsencode(os.path.realpath(video)), digest_size=6).hexdigest()
        return self.path / f"{TEMPORARY}{digest}.mp4"

    @property
    def preview(self) -> Path:
        """The folder of latents for the next preview, and the name of the last one without its ending."""
        return self.path / "preview"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def command(self, name: str, *arguments: str) -> str:
        """A command for this run as messages show it, quoted as shells need it."""
        return f"`{shlex.join(['vinfinity', name, str(self.path), *arguments])}`"

    def holds_work(self) -> bool:
        """Whether it holds latents or checkpoints that a new run would delete, also those of a first pass.

        What cannot be looked into, as on a failing drive, counts as work.
        """
        for folder in (self, run_folder(self.first_pass)):
            try:
                checkpoints = list(folder.checkpoints.iterdir())
            except OSError as error:
                if error.errno not in MISSING:
                    return True
                checkpoints = []
            finished = (folder.latents, folder.input, folder.pictures, *checkpoints)
            if not all(is_missing(path / MANIFEST) for path in finished):
                return True
        return False

    def has_latents(self) -> bool:
        """Return whether the final latents are written. Latents that cannot be read, as on a failing drive, count."""
        return not is_missing(self.latents / MANIFEST)

    def record(self) -> dict[str, Any] | None:
        """The contents of run.json, or None if it does not exist. Raises InputError if it cannot be read."""
        path = self.path / RECORD
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
        except OSError as error:
            if error.errno in MISSING:
                return None
            raise _unreadable(path, error) from None
        except ValueError as error:
            remedy = "restore it, or delete the folder"
            raise InputError("run", path, remedy, problem=f"is damaged ({error})") from None
        return values

    def borders(self) -> dict[str, list[int]]:
        """The borders in run.json by kind, in frames of the video; none in those of older versions.

        Raises InputError if it cannot be read.
        """
        kinds = (self.record() or {}).get("borders")
        found = kinds.items() if isinstance(kinds, dict) else ()
        return {
            kind: [frame for frame in frames if isinstance(frame, int)]
            for kind, frames in found
            if isinstance(frames, list)
        }

    def write_record(self, record: Mapping[str, object]) -> None:
        """Write run.json. Raises OutputError."""
        write_whole(self.path / RECORD, to_json(record, indent=2) + "\n")

    def identity(self) -> str:
        """Identifies this run: SHA-256 (hex) of the bytes of config.yaml, "" without one.

        Not of the parsed settings: a later version of vinfinity may have more of them. Raises InputError if it cannot
        be read.
        """
        try:
            return hashlib.sha256(self.settings.read_bytes()).hexdigest()
        except OSError as error:
            if error.errno in MISSING:
                return ""
            raise _unreadable(self.settings, error) from None

    def begin(self, *, settings: str, record: Mapping[str, object]) -> None:
        """Empty the folder and write settings (config.yaml) and record (run.json) of a new run. Raises OutputError."""
        try:
            # the record first: without it, what a kill leaves is no run that a later attempt could not continue
            for path in sorted(self.path.iterdir(), key=lambda path: path.name != RECORD):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != "lock":
                    path.unlink()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        write_whole(self.settings, settings)
        self.write_record({**record, "settings": self.identity(), "finished": False})

    def event(self, kind: str, **facts: object) -> None:
        """Append a line to events.jsonl. An event that cannot be written never ends a run."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = to_json({"time": now, "event": kind, **facts})
        with contextlib.suppress(OSError), (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def locked(self, *, first: bool, wait: float = EXIT_SECONDS) -> Iterator[None]:
        """Lock the folder until the block ends. first: whether this rank must be alone; the other ranks then join it.

        All ranks hold a shared lock. The first rank takes an exclusive one before, which fails while any rank of an
        earlier run still exists. Raises BusyError if another run holds the lock, OutputError if the folder cannot be
        created.
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
                    # no file locks on this file system: continue without
                    return
                if time.monotonic() > deadline:
                    holder = (self.path / "lock").read_text().strip() or "another process"
                    raise BusyError(
                        f"{self.path}: is in use by another run ({holder}); wait for it, or choose another --out"
                    ) from None
            time.sleep(0.1)


def _unreadable(path: Path, error: OSError) -> InputError:
    """The error for a file of a run that is there, and cannot be read now."""
    problem = f"cannot be read ({error.strerror or error})"
    return InputError("run", path, "check its drive and its permissions, and try again", problem=problem)


def run_folder(video: Path, *, is_folder: bool = False) -> RunFolder:
    """The folder of the run that makes `video`: NAME.run beside NAME.mp4, or beside the folder NAME."""
    return RunFolder(video.with_name(video.name + SUFFIX) if is_folder else video.with_suffix(SUFFIX))


def video_of(folder: RunFolder, out: str) -> str:
    """The video beside a run folder, named after it: the reverse of `run_folder`. out: a name of its format."""
    if out.endswith("/"):
        return f"{folder.path.with_suffix('')}/"
    return str(folder.path.with_suffix(Path(out).suffix))


def find_run(named: Path) -> RunFolder:
    """The folder of a run, given the folder or its video. Raises InputError if there is none."""
    path = expanded(named, field="run")
    if path.name in ("", ".."):
        path = Path(os.path.realpath(path))
    folder = RunFolder(path)
    if container_of(str(path)) is not None:
        folder = run_folder(path)
    elif path.suffix != SUFFIX and os.path.isdir(run_folder(path, is_folder=True).path):
        folder = run_folder(path, is_folder=True)
    if not os.path.isdir(folder.path):
        raise InputError("run", named, "name a folder NAME.run, or its video", problem="is not a run folder")
    if folder.path.suffix != SUFFIX:
        # its video, which is named after it, would belong to another folder
        remedy = f"rename it to {folder.path.name}{SUFFIX}"
        raise InputError("run", named, remedy, problem=f"does not end in {SUFFIX}")
    if folder.record() is None or not folder.settings.is_file():
        missing = RECORD if folder.settings.is_file() else "config.yaml"
        raise InputError(
            "run", named, "name a folder that `vinfinity generate` created", problem=f"has no {missing}"
        )
    return folder
