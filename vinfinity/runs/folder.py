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

# the list of files in a folder of parts; written last
MANIFEST = "manifest.json"
# ends the name of every run folder
SUFFIX = ".run"
# the files and folders in a run folder, see `RunFolder`
SETTINGS, RECORD, EVENTS, LOG, LOCK = "config.yaml", "run.json", "events.jsonl", "log.txt", "lock"
CHECKPOINTS, LATENTS, INPUT, PICTURES = "checkpoints", "latents", "input", "pictures"
DECODED, DECODED_STATE = "decoded.mp4", "decoded.json"
PREVIEW, PREVIEW_FILES = "preview", ("preview.webp", "preview.png")
FIRST_PASS, FIRST_PASS_RUN = "first-pass.mp4", f"first-pass{SUFFIX}"
# all that a run writes into its folder, apart from temporary files
OWN_NAMES = frozenset(
    {SETTINGS, RECORD, EVENTS, LOG, LOCK, CHECKPOINTS, LATENTS, INPUT, PICTURES}
    | {DECODED, DECODED_STATE, PREVIEW, *PREVIEW_FILES, FIRST_PASS, FIRST_PASS_RUN}
)
LONGEST_PATH = f"{FIRST_PASS_RUN}/{CHECKPOINTS}/step-1000/frames-999999-1000000.safetensors"
# how long the ranks of a killed run may take to exit, in seconds
EXIT_SECONDS = 4.0


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    config.yaml   all settings, with absolute paths        checkpoints/  denoising states, newest last
    run.json      versions, weights, command, figures      latents/      the final latents
    events.jsonl  history, one JSON object per line        decoded.mp4   frames decoded so far, while decoding
    log.txt       messages of the run                      decoded.json  how much of decoded.mp4 is complete
    input/        latents of the source video              pictures/     latents of the first and last frame
    preview.webp  the video as predicted so far            preview.png   contact sheet of preview.webp
    lock          locked while a run uses the folder
    first-pass.mp4, first-pass.run  the video of the first of two passes, and its run folder
    """

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / SETTINGS

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def latents(self) -> Path:
        return self.path / LATENTS

    @property
    def input(self) -> Path:
        return self.path / INPUT

    @property
    def pictures(self) -> Path:
        return self.path / PICTURES

    @property
    def first_pass(self) -> Path:
        return self.path / FIRST_PASS

    @property
    def decoded(self) -> Path:
        """The part of the run's video that is encoded so far, while it is decoded."""
        return self.path / DECODED

    def decoded_of(self, video: Path) -> Path:
        """Return the path like `decoded` for another video made from the run. Each video has a file of its own."""
        digest = hashlib.blake2s(os.fsencode(os.path.realpath(video)), digest_size=6).hexdigest()
        return self.path / f"{TEMPORARY}{digest}.mp4"

    @property
    def preview(self) -> Path:
        """The folder of the next preview's latents; with an extension, the files of the last preview."""
        return self.path / PREVIEW

    @property
    def log(self) -> Path:
        return self.path / LOG

    def command(self, name: str, *arguments: str) -> str:
        """Return a command for this run as messages show it, quoted for a shell."""
        return f"`{shlex.join(['vinfinity', name, str(self.path), *arguments])}`"

    def holds_work(self) -> bool:
        """Return whether there are latents or checkpoints that a new run would delete, also of a first pass.

        A folder that cannot be read, as on a failing drive, counts as work.
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

    def no_latents(self, *, field: str = "run", reason: str = "") -> InputError:
        """Return the error for a run without usable final latents. reason: what is wrong with them, if anything."""
        problem = f"has no latents ({reason})" if reason else "has no latents"
        return InputError(field, self.path, f"{self.command('resume')} computes them", problem=problem)

    def record(self) -> dict[str, Any] | None:
        """Return the contents of run.json, or None if it does not exist. Raises InputError if it is unreadable."""
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
        """Return the borders in run.json by kind, in video frames. Older versions recorded none.

        Raises InputError if run.json cannot be read.
        """
        kinds = (self.record() or {}).get("borders")
        return {
            kind: [frame for frame in frames if isinstance(frame, int)]
            for kind, frames in (kinds.items() if isinstance(kinds, dict) else ())
            if isinstance(frames, list)
        }

    def write_record(self, record: Mapping[str, object]) -> None:
        """Write run.json. Raises OutputError."""
        write_whole(self.path / RECORD, to_json(record, indent=2) + "\n")

    def identity(self) -> str:
        """Return what identifies this run: the SHA-256 (hex) of config.yaml, or "" if there is none.

        It covers the bytes rather than the parsed settings, because later versions of vinfinity may have more
        settings. Raises InputError if config.yaml cannot be read.
        """
        try:
            return hashlib.sha256(self.settings.read_bytes()).hexdigest()
        except OSError as error:
            if error.errno in MISSING:
                return ""
            raise _unreadable(self.settings, error) from None

    def begin(self, *, settings: str, record: Mapping[str, object]) -> None:
        """Empty the folder and write config.yaml and run.json of a new run. Raises OutputError."""
        try:
            # delete the record first: if the process is killed now, the folder no longer counts as a run
            for path in sorted(self.path.iterdir(), key=lambda path: path.name != RECORD):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        write_whole(self.settings, settings)
        self.write_record({**record, "settings": self.identity(), "finished": False})

    def event(self, kind: str, **facts: object) -> None:
        """Append a line to events.jsonl. A failure to write it is ignored, so that it never ends a run."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = to_json({"time": now, "event": kind, **facts})
        with contextlib.suppress(OSError), (self.path / EVENTS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def locked(self, *, first: bool, wait: float = EXIT_SECONDS) -> Iterator[None]:
        """Lock the folder until the block ends. first: whether this rank locks it before all others.

        All ranks hold a shared lock. The first rank takes an exclusive lock before that, which fails while any rank of
        an earlier run still exists. Raises BusyError if another run holds the lock, OutputError if the folder cannot
        be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("a+")
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
                    # this file system has no file locks: continue without one
                    return
                if time.monotonic() > deadline:
                    holder = (self.path / LOCK).read_text().strip() or "another process"
                    raise BusyError(
                        f"{self.path}: is in use by another run ({holder}); wait for it, or choose another --out"
                    ) from None
            time.sleep(0.1)


def _unreadable(path: Path, error: OSError) -> InputError:
    """Return the error for a file of a run that exists but cannot be read now."""
    problem = f"cannot be read ({error.strerror or error})"
    return InputError("run", path, "check its drive and its permissions, and try again", problem=problem)


def run_folder(video: Path, *, is_folder: bool = False) -> RunFolder:
    """Return the folder of the run that makes `video`: NAME.run beside NAME.mp4, or beside the folder NAME."""
    return RunFolder(video.with_name(video.name + SUFFIX) if is_folder else video.with_suffix(SUFFIX))


def video_of(folder: RunFolder, out: str) -> str:
    """Return the video beside a run folder, named after it: the inverse of `run_folder`.

    out: any file name with the extension of the video, or ending in a slash for a folder of PNG.
    """
    if out.endswith("/"):
        return f"{folder.path.with_suffix('')}/"
    return str(folder.path.with_suffix(Path(out).suffix))


def find_run(named: Path) -> RunFolder:
    """Return the folder of a run, given the folder or its video. Raises InputError if there is none."""
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
        # the video is named after the folder, and would belong to another one
        remedy = f"rename it to {folder.path.name}{SUFFIX}"
        raise InputError("run", named, remedy, problem=f"does not end in {SUFFIX}")
    if folder.record() is None or not folder.settings.is_file():
        missing = RECORD if folder.settings.is_file() else SETTINGS
        raise InputError(
            "run", named, "name a folder that `vinfinity generate` created", problem=f"has no {missing}"
        )
    return folder
