"""Sends runs a shutdown signal at every moment from their start to their end, and looks for requests that are lost.

    tests/campaigns/signals.py [--step 20] [--kinds SIGINT/1,SIGTERM/2] [--part 1/4] [--out part-1.json]
    tests/campaigns/signals.py --merge part-*.json

A kind is a way to ask a run to end: a signal to a run on one rank (`/1`) or two (`/2`), or one of the scenarios in
`kinds`. For each kind the moment moves on by --step milliseconds, in a scenario by ten times that, until three runs in
a row have ended before it; --part takes every fourth moment only, so that a campaign can be split. Moments are counted
in processor time, that of the process which was started plus that of its busiest rank, so that they do not depend on
other work of the machine.

A request is lost if the run went on to its end, although work was left when the signal came, or if it did not end
within --limit seconds. Every run that was stopped is resumed, and its latents are compared with those of an undisturbed
run, bit by bit. The exit code is 1 if a request was lost, an exit code was not the documented one, a traceback was
printed, or latents differ.
"""

import argparse
import collections
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NoReturn

from vinfinity.cli import main as vinfinity
from vinfinity.errors import VinfinityError
from vinfinity.media.reader import open_reader
from vinfinity.runs.parts import read_manifest

PROMPT = "a red ball bouncing over green grass"
FRAMES, STEPS = 4, 3
SHORT = ["--size", "32x32", "--device", "cpu", "--guidance", "1", "checkpoint.every=1 steps"]
# seconds of processor time in which a run that is past its last check decodes its last block and ends
LAST_MOMENT = 1.5
# runs in a row that ended before their signal
TOO_LATE = 3


@dataclass(frozen=True)
class Kind:
    """A way to ask a run to end.

    command: generate, resume, redo, extend or decode. ranks: how many. launcher: vinfinity or torchrun. number: the
    signal. target: `process`, the one that was started; `group`, it and all its ranks, as a terminal's Ctrl-C; `rank`,
    the last rank alone. again: seconds until the same signal is sent again, None for never.
    """

    name: str
    number: signal.Signals
    ranks: int = 1
    command: str = "generate"
    launcher: str = "vinfinity"
    target: str = "process"
    again: float | None = None

    @property
    def coarseness(self) -> int:
        """How many times larger the steps between its moments are."""
        return 1 if self.name.startswith("SIG") else 10

    def codes(self) -> set[int]:
        """Return the exit codes of an interrupted run: the signal's own before Python handles signals."""
        codes = {0, 75, -self.number}
        if self.number == signal.SIGINT:
            # Ctrl-C before the run began, or twice
            codes.add(130)
        if self.launcher == "torchrun":
            # of torchrun itself, whatever its ranks say
            codes |= {1, 128 + self.number}
        return codes


@dataclass
class Figures:
    """What was found for one kind. ends, processor: seconds from each signal to the end of the process, and of
    processor time in between.
    """

    sent: int = 0
    late: int = 0
    lost: int = 0
    resumed: int = 0
    codes: collections.Counter[int] = field(default_factory=collections.Counter)
    ends: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def kinds() -> dict[str, Kind]:
    """All kinds, by name."""
    plain = [
        Kind(f"{number.name}/{ranks}", number, ranks)
        for ranks in (1, 2)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    ]
    others = [
        Kind("twice/1", signal.SIGINT, 1, again=0.15),
        Kind("twice/2", signal.SIGINT, 2, again=0.15),
        Kind("group/2", signal.SIGINT, 2, target="group"),
        Kind("hangup-group/2", signal.SIGHUP, 2, target="group"),
        Kind("rank/2", signal.SIGUSR1, 2, target="rank"),
        Kind("resume/2", signal.SIGINT, 2, command="resume"),
        Kind("redo/1", signal.SIGTERM, 1, command="redo"),
        Kind("extend/2", signal.SIGINT, 2, command="extend"),
        Kind("decode/1", signal.SIGINT, 1, command="decode"),
        Kind("torchrun/2", signal.SIGTERM, 2, launcher="torchrun"),
        Kind("torchrun-ctrl-c/2", signal.SIGINT, 2, launcher="torchrun", target="group"),
        Kind("torchrun-rank/2", signal.SIGUSR1, 2, launcher="torchrun", target="rank"),
    ]
    return {kind.name: kind for kind in (*plain, *others)}


@dataclass(frozen=True)
class Ended:
    """A run that has ended. clock: the time of day of the signal. processor: the seconds that it computed after it."""

    code: int
    stderr: str
    clock: float
    processor: float


class Running:
    """A run, in a process group of its own. code: its exit code at the end. used: all its processor time so far."""

    def __init__(self, command: list[str], errors: IO[str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        self.code: int | None = None
        self.used = 0.0

    def wait(self, seconds: float) -> bool:
        """Wait for the end, that long at most; return whether it has come."""
        deadline = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.code is not None

    def moment(self) -> float:
        """How far the run is: processor seconds of the process, and of the one of its ranks that has the most."""
        self._ended()
        return processor_seconds(self.process.pid) + max(map(processor_seconds, self.ranks()), default=0.0)

    def processor_seconds(self) -> float:
        """Processor seconds of all processes so far: those of ranks that have ended count on."""
        now = processor_seconds(self.process.pid) + sum(map(processor_seconds, self.ranks()))
        self.used = max(self.used, now)
        return self.used

    def ranks(self) -> list[int]:
        """Return the process ids of the ranks, in order."""
        try:
            pid = self.process.pid
            children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            return [
                child for child in children if b"vinfinity" in Path(f"/proc/{child}/cmdline").read_bytes()
            ]
        except OSError:
            return []

    def send(self, kind: Kind) -> bool:
        """Send the signal of a kind; return whether its target was there."""
        try:
            if self._ended():
                return False
            if kind.target == "group":
                os.killpg(self.process.pid, kind.number)
            elif kind.target == "rank" and (ranks := self.ranks()):
                os.kill(ranks[-1], kind.number)
            elif kind.target == "rank":
                # no rank yet
                os.kill(self.process.pid, signal.SIGTERM)
            else:
                os.kill(self.process.pid, kind.number)
        except OSError:
            return False
        return True

    def _ended(self) -> bool:
        if self.code is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.code = self.process.returncode = os.waitstatus_to_exitcode(status)
                self.used = usage.ru_utime + usage.ru_stime
        return self.code is not None


def processor_seconds(pid: int) -> float:
    """Processor time of all threads of a process, in seconds; 0 if it is gone."""
    try:
        threads = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    except OSError:
        return 0.0


class Campaign:
    """Runs in a folder: those that are disturbed, and one of each command that is not."""

    def __init__(self, work: Path, *, limit: float) -> None:
        self.work, self.limit = work, limit
        self.finished = work / "finished.run"
        self._undisturbed: dict[str, Any] = {}
        self._started: Path | None = None
        quietly(self.command("generate", self.finished.with_suffix(".mp4")))

    def command(self, name: str, out: Path) -> list[str]:
        """Return the arguments of a command that makes the video `out`."""
        if name == "generate":
            return [
                "generate",
                "-p",
                PROMPT,
                "--frames",
                str(FRAMES),
                "--steps",
                str(STEPS),
                *SHORT,
                "--out",
                str(out),
            ]
        if name == "redo":
            return ["redo", str(self.finished), "--frames", "1:3", "--out", str(out)]
        if name == "extend":
            return ["extend", str(self.finished), "--frames", "+3", "--out", str(out)]
        if name == "decode":
            return ["decode", str(self.finished), "--out", str(out)]
        return ["resume", str(out.with_suffix(".run"))]

    def whole(self, name: str) -> Any:
        """Return the latents of an undisturbed run of a command."""
        if name in ("resume", "decode"):
            name = "generate"
        if name not in self._undisturbed:
            out = self.work / f"whole-{name}.mp4"
            quietly(self.command(name, out))
            self._undisturbed[name] = latents(out.with_suffix(".run"))
        return self._undisturbed[name]

    def half_done(self) -> Path:
        """Return a run that was stopped after its first checkpoint, to be copied."""
        if self._started is None:
            self._started = self.work / "half.run"
            command = self.command("generate", self._started.with_suffix(".mp4"))
            process = subprocess.Popen(
                [sys.executable, "-m", "vinfinity", *command],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while not (self._started / "checkpoints" / "step-0001" / "manifest.json").exists():
                time.sleep(0.001)
            process.terminate()
            assert process.wait() == 75
        return self._started

    def try_once(self, kind: Kind, at: float, figures: Figures) -> bool:
        """Interrupt one run at a moment, in seconds. Returns whether it had ended before."""
        out = self.work / "a.mp4"
        for path in self.work.glob("a.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if kind.command == "resume":
            shutil.copytree(self.half_done(), out.with_suffix(".run"))
        arguments = self.command(kind.command, out)
        command = [sys.executable, "-m", "vinfinity", *arguments]
        if kind.launcher == "torchrun":
            torchrun = ["torch.distributed.run", "--nproc-per-node", str(kind.ranks), "--master-port", "0"]
            command = [sys.executable, "-m", *torchrun, "-m", "vinfinity", *arguments]
        elif kind.ranks > 1:
            command += ["--gpus", str(kind.ranks)]
        with (self.work / "stderr.txt").open("w+") as errors:
            run = Running(command, errors)
            moment = used = 0.0
            while run.code is None and moment < at:
                time.sleep(0.001)
                moment, used = run.moment(), run.processor_seconds()
            if run.code is not None or not run.send(kind):
                run.wait(math.inf)
                figures.late += 1
                return True
            sent, clock = time.monotonic(), time.time()
            figures.sent += 1
            if kind.again is not None:
                run.wait(kind.again)
                run.send(kind)
            where = f"{kind.name} after {1000 * moment:.0f} ms"
            if not run.wait(self.limit):
                os.killpg(run.process.pid, signal.SIGKILL)
                run.wait(math.inf)
                figures.lost += 1
                errors.seek(0)
                figures.wrong.append(f"{where}: had not ended after {self.limit:g} s: {errors.read()[-500:]}")
                return False
            errors.seek(0)
            ended = Ended(run.code or 0, errors.read(), clock, processor=run.used - used)
        figures.ends.append(time.monotonic() - sent)
        figures.processor.append(ended.processor)
        figures.codes[ended.code] += 1
        self.judge(kind, ended, out, where, figures)
        return False

    def judge(self, kind: Kind, ended: "Ended", out: Path, where: str, figures: Figures) -> None:
        """Look at a run that has ended."""
        folder = out.with_suffix(".run")
        if ended.code == 0:
            denoised = events(folder, "latents") if kind.command != "decode" else []
            if ended.processor > LAST_MOMENT or any(moment > ended.clock for moment in denoised):
                figures.lost += 1
                figures.wrong.append(f"{where}: went on to its end, {ended.processor:.1f} s after the signal")
        elif ended.code not in kind.codes():
            figures.wrong.append(f"{where}: exit code {ended.code}: {ended.stderr[-800:]}")
        if "Traceback" in ended.stderr and kind.launcher != "torchrun" and ended.code != -kind.number:
            figures.wrong.append(f"{where}: traceback: {ended.stderr[-800:]}")
        again = ["resume", str(folder), "--gpus", "1"]
        if kind.command == "decode":
            folder, again = self.finished, ["decode", str(self.finished), "--out", str(out), "--overwrite"]
        if not (folder / "run.json").exists():
            # it had not begun
            return
        try:
            if ended.code != 0:
                quietly(again)
                figures.resumed += 1
            difference = (latents(folder) - self.whole(kind.command)).abs().max().item()
            if difference or len([*open_reader(out)]) < FRAMES:
                figures.wrong.append(f"{where}: the video is incomplete, or differs by {difference:.1e}")
        except (VinfinityError, SystemExit, OSError) as error:
            figures.wrong.append(f"{where}: cannot be resumed: {error}")

    def sweep(self, kind: Kind, moments: Iterator[float]) -> Figures:
        """Interrupt runs at later and later moments, until they end before."""
        figures, late = Figures(), 0
        if kind.command == "resume":
            self.half_done()
        for at in moments:
            late = late + 1 if self.try_once(kind, at, figures) else 0
            if late == TOO_LATE:
                break
        return figures


def latents(folder: Path) -> Any:
    parts = read_manifest(folder / "latents")
    return parts.read(range(parts.frames))


def events(folder: Path, kind: str) -> list[float]:
    """Return the times of day of the events of a kind."""
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [event for line in lines if (event := json.loads(line))["event"] == kind]
    return [datetime.fromisoformat(event["time"]).timestamp() for event in found]


def quietly(arguments: Sequence[str]) -> None:
    """Run a command in this process with its output discarded. Raises SystemExit on an exit code other than 0."""
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            vinfinity(arguments)
    except SystemExit as ended:
        if ended.code:
            raise


def rows(found: dict[str, Figures]) -> list[tuple[str, ...]]:
    """Return the table of a campaign."""
    head = (
        "kind",
        "sent",
        "too late",
        "lost",
        "wrong",
        "resumed",
        "median end",
        "slowest end",
        "computed",
        "exit codes",
    )
    table: list[tuple[str, ...]] = [head]
    for name, figures in found.items():
        ends = figures.ends or [0.0]
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(figures.codes.items()))
        counts = (figures.sent, figures.late, figures.lost, len(figures.wrong), figures.resumed)
        times = (
            f"{statistics.median(ends):.2f} s",
            f"{max(ends):.2f} s",
            f"{max(figures.processor or [0]):.2f} s",
        )
        table.append((name, *map(str, counts), *times, codes))
    return table


def as_json(found: dict[str, Figures]) -> str:
    return json.dumps(
        {name: {**asdict(figures), "codes": dict(figures.codes)} for name, figures in found.items()}
    )


def merged(files: Sequence[Path]) -> dict[str, Figures]:
    """Return the figures of several parts of a campaign, added up."""
    found: dict[str, Figures] = {}
    for file in files:
        for name, values in json.loads(file.read_text()).items():
            total = found.setdefault(name, Figures())
            total.codes.update({int(code): count for code, count in values.pop("codes").items()})
            for field_name, value in values.items():
                setattr(total, field_name, getattr(total, field_name) + value)
    return found


def finish(found: dict[str, Figures]) -> NoReturn:
    """Print the table and what was wrong, and exit."""
    for row in rows(found):
        print(
            "  ".join(
                f"{cell:{width}}" for cell, width in zip(row, (18, 5, 8, 5, 6, 8, 11, 12, 9, 0), strict=True)
            )
        )
    for figures in found.values():
        for line in figures.wrong:
            print(f"wrong: {line}")
    sys.exit(any(figures.lost or figures.wrong for figures in found.values()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = kinds()
    parser.add_argument("--step", type=int, default=20, help="milliseconds between two moments [%(default)s]")
    parser.add_argument("--kinds", default="", help=f"some of {','.join(known)} [all]")
    parser.add_argument("--part", default="1/1", help="which part of the moments, such as 2/4 [all]")
    parser.add_argument(
        "--limit", type=float, default=120.0, help="seconds to wait for the end [%(default)s]"
    )
    parser.add_argument("--from", dest="first", type=int, default=0, help="first moment, in ms [%(default)s]")
    parser.add_argument("--to", type=int, default=60_000, help="last moment, in ms [the end of the run]")
    parser.add_argument("--out", type=Path, help="file to write the figures to, for --merge")
    parser.add_argument(
        "--merge", type=Path, nargs="+", help="show the figures of these files, and run nothing"
    )
    options = parser.parse_args()
    if options.merge:
        finish(merged(options.merge))
    # shells start background jobs with Ctrl-C ignored, and nohup ignores SIGHUP: runs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    part, parts = map(int, options.part.split("/"))
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="vinfinity-signals-") as folder:
        campaign = Campaign(Path(folder), limit=options.limit)
        for name in options.kinds.split(",") if options.kinds else known:
            begun = time.monotonic()
            step = options.step * known[name].coarseness
            first = options.first + (part - 1) * step
            moments = (moment / 1000 for moment in range(first, options.to + 1, parts * step))
            found[name] = campaign.sweep(known[name], moments)
            print(f"{name}: {found[name].sent} signals in {time.monotonic() - begun:.0f} s", flush=True)
            if options.out:
                options.out.write_text(as_json(found))
    finish(found)


if __name__ == "__main__":
    main()
