"""Kills runs at random moments of every phase, lets them go on, and compares them with uninterrupted ones.

    tests/campaigns/faults.py [--kills 60] [--seed 0] [--phases decode,mux] [--keep FOLDER]

A video is begun, killed, resumed and killed again, with one or two ranks each time, until it is finished; then the next
one is begun, until there were enough kills. The signal and the process it goes to (any rank, or the one that started
them) are drawn too. Ends with exit code 1 where latents differ, work was lost, or a process hung.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vinfinity.cli import main as vinfinity
from vinfinity.media.mp4 import read_video
from vinfinity.runs.parts import DamagedError, read_manifest

PHASES = ("start", "denoising", "checkpoint", "denoising", "gather", "decode", "mux", "mux")
SIGNALS = [signal.SIGKILL] * 5 + [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
FRAMES, STEPS, EVERY = 40, 14, 2
HANG = 60.0  # seconds; a run takes some ten
CLOSE = 1e-4


@dataclass
class Report:
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    signals: collections.Counter[str] = field(default_factory=collections.Counter)
    ranks: collections.Counter[int] = field(default_factory=collections.Counter)
    videos: int = 0
    missed: int = 0
    losses: int = 0
    hangs: int = 0
    repeated: int = 0  # the most steps that were computed again after one kill
    worst: float = 0.0
    identical: int = 0
    decoded: int = 0  # the most frames that were decoded before a kill and not again after it
    wrong: list[str] = field(default_factory=list)


def arguments(seed: int, out: Path) -> list[str]:
    sampler = ("sde-dpmsolver++", "dpmsolver++", "ddim")[seed % 3]
    settings = [
        "--frames",
        str(FRAMES),
        "--steps",
        str(STEPS),
        "--size",
        "64x48",
        "--device",
        "cpu",
        "--seed",
        str(seed),
    ]
    more = [
        "--sampler",
        sampler,
        f"checkpoint.every={EVERY} steps",
        "video.preset=veryslow",
        "decode.frames=2",
    ]
    return [
        "generate",
        "--prompt",
        "a red ball bouncing over green grass",
        *settings,
        *more,
        "--out",
        str(out),
    ]


def unfinished(folder: Path, pattern: str) -> bool:
    return any(not (path / "manifest.json").exists() for path in folder.glob(pattern))


def reached(phase: str, folder: Path, since: int) -> bool:
    """Whether a run is in a phase, judged by its folder. since: the length of its events when this process began."""
    if phase == "start":
        return True
    if phase == "denoising":
        path = folder / "events.jsonl"
        return path.exists() and '"event": "step"' in path.read_text()[since:]
    if phase == "checkpoint":
        return unfinished(folder, "checkpoints/step-*")
    if phase == "gather":
        return unfinished(folder, "latents")
    if phase == "decode":  # the encoder keeps the first frames for a while: decoded.mp4 would come late
        path = folder / "events.jsonl"
        told = path.read_text()[since:] if path.exists() else ""
        return '"event": "latents"' in told or f'"event": "resumed", "step": {STEPS}' in told
    return any(folder.parent.glob(f".{folder.stem}.mp4.*.part"))


def left_in(folder: Path, planned: str) -> str:
    """The phase that a run was killed in, by what it left."""
    if folder.with_suffix(".mp4").exists():
        return "end"
    if any(folder.parent.glob(f".{folder.stem}.mp4.*.part")):
        return "mux"
    if unfinished(folder, "latents"):
        return "gather"
    if (folder / "latents").exists():
        return "decode"
    if unfinished(folder, "checkpoints/step-*"):
        return "checkpoint"
    return planned if planned == "start" else "denoising"


def processes(of: int) -> list[int]:
    """A process and the ranks that it started."""
    try:
        children = Path(f"/proc/{of}/task/{of}/children").read_text().split()
        ranks = [
            int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
    except OSError:
        ranks = []
    return [of, *ranks]


def run_and_kill(
    command: list[str], folder: Path, phase: str, draw: random.Random, report: Report
) -> tuple[bool, int, str]:
    """Starts a run and kills it in a phase. Returns whether it was killed, its exit code, and what it said."""
    events = folder / "events.jsonl"
    since = len(events.read_text()) if events.exists() else 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    process = subprocess.Popen(
        [sys.executable, "-m", "vinfinity", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, max(0, priority)),
    )
    deadline = time.monotonic() + HANG
    while process.poll() is None and not reached(phase, folder, since) and time.monotonic() < deadline:
        time.sleep(0.0003)
    time.sleep(draw.uniform(0, {"start": 7, "denoising": 1.0, "decode": 0.4}.get(phase, 0.001)))
    number = draw.choice(SIGNALS) if phase != "mux" else signal.SIGKILL
    target = draw.choice(processes(process.pid))
    if target != process.pid and number == signal.SIGINT:
        number = signal.SIGTERM  # ranks leave Ctrl-C to the process that started them
    alive = process.poll() is None
    if alive:
        try:
            os.kill(target, number)
        except ProcessLookupError:
            alive = False
    try:
        _, said = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        report.hangs += 1
        os.killpg(process.pid, signal.SIGABRT)  # faulthandler writes where they are
        _, said = process.communicate()
        report.wrong.append(
            f"hung in {phase} after {number.name} to process {target} of {process.pid}:\n{said}"
        )
    if alive and process.returncode != 0:
        report.signals[number.name] += 1
        return True, process.returncode, said
    return False, process.returncode, said


def repeated_steps(folder: Path) -> int:
    """The most steps that were computed again after one interruption, from the events."""
    most, highest, again = 0, 0, 0
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "started":
            again = 0
        if event["event"] == "step":
            again += event["step"] <= highest
            highest = max(highest, event["step"])
            most = max(most, again)
    return most


def decoded_frames(folder: Path) -> int:
    """Frames that a run has kept of its decoding."""
    path = folder / "decoded.json"
    return int(json.loads(path.read_text())["frames"]) if path.exists() else 0


def taken_over(folder: Path) -> list[int]:
    """Frames that runs found decoded already, from the log."""
    said = re.findall(
        rf"(\d+) of {FRAMES} frames have already been decoded", (folder / "log.txt").read_text()
    )
    return [int(frames) for frames in said]


def one_video(
    seed: int, work: Path, draw: random.Random, report: Report, *, wanted: int, phases: Iterator[str]
) -> None:
    """One video from its first start to its end, killed in phase after phase."""
    out = work / f"{seed}.mp4"
    folder = out.with_suffix(".run")
    used, kept = set(), {0}
    while not out.exists() and sum(report.kills.values()) < wanted:
        phase = next(phases, "")
        if not phase:
            break
        ranks = draw.choice((1, 2))
        used.add(ranks)
        command = [*arguments(seed, out), "--resume", "--gpus", str(ranks)]
        killed, code, said = run_and_kill(command, folder, phase, draw, report)
        if killed:
            found = left_in(folder, phase)
            if not out.exists():
                kept.add(decoded_frames(folder))
            report.kills[found] += 1
            report.ranks[ranks] += 1
            expected = {75, 3, 130, 128 + 15, -2, -9, -10, -15}
            lines = said.strip().splitlines()
            if code not in expected or "Traceback" in said:
                report.wrong.append(f"{seed} {phase}: exit code {code}: {lines[-1] if lines else ''}")
            if found in ("decode", "mux"):
                try:
                    read_manifest(folder / "latents").verify()
                except DamagedError as error:
                    report.wrong.append(f"{seed}: killed in {found}: {error}")
        else:
            report.missed += 1
            if code:
                report.wrong.append(f"{seed} {phase}: ended with {code}: {said.strip().splitlines()[-1:]}")
        print(
            f"{sum(report.kills.values()):3} kills, video {seed}, {ranks} ranks, {phase}: exit {code}",
            flush=True,
        )
    if not out.exists():
        used.add(1)
        subprocess.run(
            [sys.executable, "-m", "vinfinity", *arguments(seed, out), "--resume"],
            check=False,
            timeout=HANG,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    compare(seed, work, out, report, alone=used == {1})
    found = taken_over(folder)
    report.decoded = max(report.decoded, *found, 0)
    if found != sorted(found) or {0, *found} != kept:
        report.wrong.append(f"{seed}: {sorted(kept)} frames were decoded, of which {found} were taken over")


def compare(seed: int, work: Path, out: Path, report: Report, *, alone: bool) -> None:
    reference = work / f"{seed}-whole.mp4"
    quietly(lambda: vinfinity([*arguments(seed, reference), "checkpoint.every=never"]))
    report.videos += 1
    try:
        ours, theirs = (read_manifest(path.with_suffix(".run") / "latents") for path in (out, reference))
        difference = (ours.read(range(FRAMES)) - theirs.read(range(FRAMES))).abs().max().item()
        complete = len(read_video(out)) == FRAMES
    except (OSError, DamagedError) as error:
        report.losses += 1
        report.wrong.append(f"{seed}: {error}")
        return
    report.worst = max(report.worst, difference)
    report.identical += difference == 0
    report.losses += difference > (0 if alone else CLOSE) or not complete
    report.repeated = max(report.repeated, repeated_steps(out.with_suffix(".run")))


def quietly(call: Callable[[], object]) -> None:
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            call()
    except SystemExit as ended:
        if ended.code:
            raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--phases", default=",".join(PHASES), help="those in which each video is killed, in order"
    )
    parser.add_argument("--keep", type=Path, help="leave the runs here")
    options = parser.parse_args()
    with contextlib.suppress(OSError):
        os.nice(-10)  # a phase may last a hundredth of a second
    draw, report, started = random.Random(options.seed), Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vinfinity-faults-") as folder:
        work = options.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        seed = 0
        while sum(report.kills.values()) < options.kills:
            phases = iter(options.phases.split(","))
            one_video(seed, work, draw, report, wanted=options.kills, phases=phases)
            seed += 1
    print(
        f"{sum(report.kills.values())} kills of {report.videos} videos in {time.monotonic() - started:.0f} s "
        f"({report.missed} came too late)\n"
        f"by phase: {dict(report.kills)}\nby signal: {dict(report.signals)}\nby ranks: {dict(report.ranks)}\n"
        f"losses: {report.losses}, hangs: {report.hangs}\n"
        f"largest difference of the latents: {report.worst:.1e}; identical: {report.identical} of {report.videos}\n"
        f"most steps computed again after a kill: {report.repeated}, with a checkpoint every {EVERY}; "
        f"most frames that were not decoded again: {report.decoded} of {FRAMES}"
    )
    for line in report.wrong:
        print(f"wrong: {line}")
    sys.exit(bool(report.losses or report.hangs or report.wrong or report.repeated > EVERY))


if __name__ == "__main__":
    main()
