"""Kills runs at random moments of every phase, resumes them, and compares them with uninterrupted runs.

    tests/campaigns/faults.py [--kills 60] [--seed 0] [--phases decode,mux] [--keep FOLDER] [--model FOLDER]

Each video is started, killed and resumed, each time on one or two ranks at random, until it is finished; the campaign
ends after --kills kills. The signal and the process that gets it (any rank, or the one that started them) are also
random. The exit code is 1 if latents differ, work was lost, or a process hung.
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
from vinfinity.errors import VinfinityError
from vinfinity.media.reader import open_reader
from vinfinity.runs.parts import DamagedError, read_manifest
from vinfinity.system.files import TEMPORARY
from vinfinity.weights.card import read_card

PHASES = ("start", "denoising", "checkpoint", "denoising", "gather", "decode", "mux", "mux")
SIGNALS = [signal.SIGKILL] * 5 + [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
FRAMES, STEPS, EVERY = 40, 14, 2
# seconds after which a process counts as hung; a run takes about ten
HANG = 60.0
# largest difference of latents computed on different numbers of ranks
TOLERANCE = 1e-4
SAMPLERS = {"unet3d": ("sde-dpmsolver++", "dpmsolver++", "ddim"), "wan": ("unipc", "euler", "dpmsolver++")}


@dataclass
class Report:
    """What a campaign found.

    missed: kills that came after the end of a run. repeated: the most steps computed again after one kill.
    worst: largest difference of latents. identical: videos whose latents are bit-identical. reused: the most frames
    that were decoded before a kill and not again after it.
    """

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    signals: collections.Counter[str] = field(default_factory=collections.Counter)
    ranks: collections.Counter[int] = field(default_factory=collections.Counter)
    videos: int = 0
    missed: int = 0
    losses: int = 0
    hangs: int = 0
    repeated: int = 0
    worst: float = 0.0
    identical: int = 0
    reused: int = 0
    wrong: list[str] = field(default_factory=list)


# of all runs
MODEL = ["mini"]


def arguments(seed: int, out: Path) -> list[str]:
    """Return the command line of a run."""
    sampler = SAMPLERS[read_card(MODEL[0]).family.name][seed % 3]
    command = ["generate", "--model", MODEL[0], "--prompt", "a red ball bouncing over green grass"]
    command += [
        "--frames",
        str(FRAMES),
        "--steps",
        str(STEPS),
        "--size",
        "64x48",
        "--guidance",
        "2",
        "--device",
        "cpu",
    ]
    command += ["--seed", str(seed), "--sampler", sampler, "--out", str(out)]
    return [*command, f"checkpoint.every={EVERY} steps", "video.preset=veryslow", "decode.frames=2"]


def unfinished(folder: Path, pattern: str) -> bool:
    """Whether a subfolder is only partly written."""
    return any(not (path / "manifest.json").exists() for path in folder.glob(pattern))


def reached(phase: str, folder: Path, since: int) -> bool:
    """Whether a run has reached a phase, by its folder. since: length of its event file when the process started."""
    if phase == "start":
        return True
    if phase == "denoising":
        path = folder / "events.jsonl"
        return path.exists() and '"event": "step"' in path.read_text()[since:]
    if phase == "checkpoint":
        return unfinished(folder, "checkpoints/step-*")
    if phase == "gather":
        return unfinished(folder, "latents")
    if phase == "decode":
        # decoded.mp4 would appear too late, since the encoder buffers the first frames
        path = folder / "events.jsonl"
        events = path.read_text()[since:] if path.exists() else ""
        return '"event": "latents"' in events or f'"event": "resumed", "step": {STEPS}' in events
    return any(folder.parent.glob(f"{TEMPORARY}*.part"))


def killed_in(folder: Path, planned: str) -> str:
    """Return the phase in which a run was killed, by the files it left."""
    if folder.with_suffix(".mp4").exists():
        return "end"
    if any(folder.parent.glob(f"{TEMPORARY}*.part")):
        return "mux"
    if unfinished(folder, "latents"):
        return "gather"
    if (folder / "latents").exists():
        return "decode"
    if unfinished(folder, "checkpoints/step-*"):
        return "checkpoint"
    return planned if planned == "start" else "denoising"


def processes(parent: int) -> list[int]:
    """Return the ids of a process and of the ranks that it started."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        ranks = [
            int(child)
            for child in children
            if b"vinfinity.parallel.started" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
    except OSError:
        ranks = []
    return [parent, *ranks]


def run_and_kill(
    command: list[str], folder: Path, phase: str, generator: random.Random, report: Report
) -> tuple[bool, int, str]:
    """Start a run and kills it in a phase. Returns whether it was killed, its exit code, and its stderr."""
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
    time.sleep(generator.uniform(0, {"start": 7, "denoising": 1.0, "decode": 0.4}.get(phase, 0.001)))
    number = generator.choice(SIGNALS) if phase != "mux" else signal.SIGKILL
    target = generator.choice(processes(process.pid))
    if target != process.pid and number == signal.SIGINT:
        # ranks leave Ctrl-C to the process that started them
        number = signal.SIGTERM
    alive = process.poll() is None
    if alive:
        try:
            os.kill(target, number)
        except ProcessLookupError:
            alive = False
    try:
        _, stderr = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        report.hangs += 1
        # makes faulthandler print the stack of each process
        os.killpg(process.pid, signal.SIGABRT)
        _, stderr = process.communicate()
        report.wrong.append(
            f"hung in {phase} after {number.name} to process {target} of {process.pid}:\n{stderr}"
        )
    if alive and process.returncode != 0:
        report.signals[number.name] += 1
        return True, process.returncode, stderr
    return False, process.returncode, stderr


def repeated_steps(folder: Path) -> int:
    """Return the most steps computed again after one interruption, from the event file."""
    most, highest, repeated = 0, 0, 0
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "started":
            repeated = 0
        if event["event"] == "step":
            repeated += event["step"] <= highest
            highest = max(highest, event["step"])
            most = max(most, repeated)
    return most


def decoded_frames(folder: Path) -> int:
    """Return the number of decoded frames that a run has saved."""
    path = folder / "decoded.json"
    return int(json.loads(path.read_text())["frames"]) if path.exists() else 0


def reused_frames(folder: Path) -> list[int]:
    """Return the number of decoded frames that each resumed run found, from the log."""
    counts = re.findall(
        rf"(\d+) of {FRAMES} frames have already been decoded", (folder / "log.txt").read_text()
    )
    return [int(count) for count in counts]


def one_video(
    seed: int, work: Path, generator: random.Random, report: Report, *, kills: int, phases: Iterator[str]
) -> None:
    """One video from start to end, killed in one phase after the other. kills: the total after which to stop."""
    out = work / f"{seed}.mp4"
    folder = out.with_suffix(".run")
    ranks_used, saved = set(), {0}
    while not out.exists() and sum(report.kills.values()) < kills:
        phase = next(phases, "")
        if not phase:
            break
        ranks = generator.choice((1, 2))
        ranks_used.add(ranks)
        command = [*arguments(seed, out), "--resume", "--gpus", str(ranks)]
        killed, code, stderr = run_and_kill(command, folder, phase, generator, report)
        if killed:
            actual = killed_in(folder, phase)
            if not out.exists():
                saved.add(decoded_frames(folder))
            report.kills[actual] += 1
            report.ranks[ranks] += 1
            expected = {75, 3, 130, 128 + 15, -2, -9, -10, -15}
            lines = stderr.strip().splitlines()
            if code not in expected or "Traceback" in stderr:
                report.wrong.append(f"{seed} {phase}: exit code {code}: {lines[-1] if lines else ''}")
            if actual in ("decode", "mux"):
                try:
                    read_manifest(folder / "latents").verify()
                except DamagedError as error:
                    report.wrong.append(f"{seed}: killed in {actual}: {error}")
        else:
            report.missed += 1
            if code:
                report.wrong.append(f"{seed} {phase}: exit code {code}: {stderr.strip().splitlines()[-1:]}")
        print(
            f"{sum(report.kills.values()):3} kills, video {seed}, {ranks} ranks, {phase}: exit {code}",
            flush=True,
        )
    if not out.exists():
        ranks_used.add(1)
        subprocess.run(
            [sys.executable, "-m", "vinfinity", *arguments(seed, out), "--resume"],
            check=False,
            timeout=HANG,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    compare(seed, work, out, report, one_rank=ranks_used == {1})
    reused = reused_frames(folder)
    report.reused = max(report.reused, *reused, 0)
    if reused != sorted(reused) or {0, *reused} != saved:
        report.wrong.append(f"{seed}: saved {sorted(saved)} decoded frames, but reused {reused}")


def compare(seed: int, work: Path, out: Path, report: Report, *, one_rank: bool) -> None:
    """Compare a video with an uninterrupted one. one_rank: whether every part was computed on one rank."""
    reference = work / f"{seed}-whole.mp4"
    quietly(lambda: vinfinity([*arguments(seed, reference), "checkpoint.every=never"]))
    report.videos += 1
    try:
        interrupted, whole = (
            read_manifest(path.with_suffix(".run") / "latents") for path in (out, reference)
        )
        frames = range(whole.frames)
        difference = (interrupted.read(frames) - whole.read(frames)).abs().max().item()
        complete = len([*open_reader(out)]) == FRAMES
    except (OSError, VinfinityError) as error:
        report.losses += 1
        report.wrong.append(f"{seed}: {error}")
        return
    report.worst = max(report.worst, difference)
    report.identical += difference == 0
    report.losses += difference > (0 if one_rank else TOLERANCE) or not complete
    report.repeated = max(report.repeated, repeated_steps(out.with_suffix(".run")))


def quietly(call: Callable[[], object]) -> None:
    """Call a function with its output discarded. Raises SystemExit if it exits with a code other than 0."""
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
    parser.add_argument("--kills", type=int, default=60, help="number of kills [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices [%(default)s]")
    parser.add_argument(
        "--phases", default=",".join(PHASES), help="phases in which each video is killed, in this order"
    )
    parser.add_argument("--keep", type=Path, help="folder in which the runs are left")
    parser.add_argument("--model", default="mini", help="name or folder of the model [%(default)s]")
    options = parser.parse_args()
    MODEL[0] = options.model
    with contextlib.suppress(OSError):
        # a phase may last only a hundredth of a second
        os.nice(-10)
    generator, report, started = random.Random(options.seed), Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vinfinity-faults-") as folder:
        work = options.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        seed = 0
        while sum(report.kills.values()) < options.kills:
            phases = iter(options.phases.split(","))
            one_video(seed, work, generator, report, kills=options.kills, phases=phases)
            seed += 1
    print(
        f"{sum(report.kills.values())} kills of {report.videos} videos in {time.monotonic() - started:.0f} s "
        f"({report.missed} too late)\n"
        f"by phase: {dict(report.kills)}\nby signal: {dict(report.signals)}\nby ranks: {dict(report.ranks)}\n"
        f"losses: {report.losses}, hangs: {report.hangs}\n"
        f"largest difference of the latents: {report.worst:.1e}; identical: {report.identical} of {report.videos}\n"
        f"most steps computed again after a kill: {report.repeated}, with a checkpoint every {EVERY}; "
        f"most decoded frames reused: {report.reused} of {FRAMES}"
    )
    for line in report.wrong:
        print(f"wrong: {line}")
    sys.exit(bool(report.losses or report.hangs or report.wrong or report.repeated > EVERY))


if __name__ == "__main__":
    main()
