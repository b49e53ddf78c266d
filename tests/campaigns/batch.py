"""Kills a batch at random moments, starts it again, and compares its videos with those of an uninterrupted batch.

    tests/campaigns/batch.py [--prompts 50] [--kills 5] [--gpus 1] [--seed 0] [--keep FOLDER]

Each kill is a SIGKILL of the process that was started, a random time after a random number of videos are made. The exit
code is 1 if a video is missing, was made twice, or has other latents, or if a step was computed again although a
checkpoint after it was on disk.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vinfinity.media.reader import open_reader
from vinfinity.runs.parts import read_manifest

FRAMES, STEPS = 6, 4
SETTINGS = ["--frames", str(FRAMES), "--steps", str(STEPS), "--size", "64x64", "--device", "cpu"]
SETTINGS += ["checkpoint.every=1 steps"]
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "white")
THINGS = ("a {} ball", "a {} boat moving right", "a {} star", "a {} ball bouncing over green grass")
# seconds after which a batch counts as hung
HANG = 600.0


def command(prompts: Path, folder: Path, *, gpus: int) -> list[str]:
    arguments = ["batch", str(prompts), "--folder", str(folder), "--gpus", str(gpus)]
    return [sys.executable, "-m", "vinfinity", *arguments, *SETTINGS]


def finished(folder: Path) -> int:
    """Return the videos that a batch has made so far."""
    return len(list(folder.glob("*.mp4")))


def start_and_kill(words: list[str], folder: Path, *, after: int, delay: float) -> int:
    """Start a batch, kill it `delay` seconds after `videos` videos exist, and return how many there are then."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + HANG
    while finished(folder) < after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait()
    return finished(folder)


def events(run: Path, kind: str) -> list[dict[str, object]]:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def faults_of(folder: Path, whole: Path, *, prompts: int) -> list[str]:
    """Return what is wrong with a batch that was killed. whole: the folder of one that was not."""
    names = [sorted(path.name for path in place.glob("*.mp4")) for place in (folder, whole)]
    faults = [] if names[0] == names[1] and len(names[0]) == prompts else [f"other videos: {names}"]
    for name in names[0]:
        runs = [(place / name).with_suffix(".run") for place in (folder, whole)]
        if (count := len(events(runs[0], "finished"))) != 1:
            faults.append(f"{name}: made {count} times")
        steps = collections.Counter(str(event["step"]) for event in events(runs[0], "step"))
        # the step that was being computed, or its checkpoint written, when the kill came
        if sum(steps.values()) - STEPS > len(events(runs[0], "started")) - 1:
            faults.append(f"{name}: {sum(steps.values())} steps in place of {STEPS}")
        latents = [read_manifest(run / "latents").read(range(FRAMES)) for run in runs]
        if not latents[0].equal(latents[1]):
            faults.append(f"{name}: latents differ by up to {(latents[0] - latents[1]).abs().max():.2e}")
        if (frames := len([*open_reader(folder / name)])) != FRAMES:
            faults.append(f"{name}: a video of {frames} frames")
    return faults


def main() -> None:
    """Return the command line of the campaign."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--gpus", type=int, default=1, help="ranks of the batch that is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to work in, which is kept")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    generator = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        work = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        file = work / "prompts.txt"
        texts = [THINGS[number % 4].format(COLOURS[number % 7]) for number in range(arguments.prompts)]
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
        whole, killed = work / "whole", work / "killed"
        started = time.monotonic()
        subprocess.run(command(file, whole, gpus=1), check=True, stdout=subprocess.DEVNULL, timeout=HANG)
        each = (time.monotonic() - started) / arguments.prompts
        print(f"uninterrupted: {arguments.prompts} videos, {each:.2f} s each", flush=True)
        words = command(file, killed, gpus=arguments.gpus)
        for after in sorted(generator.sample(range(arguments.prompts - 1), arguments.kills)):
            delay = generator.uniform(0, 2 * each)
            there = start_and_kill(words, killed, after=after, delay=delay)
            print(f"killed {delay:.2f} s after video {after}: {there} videos are there", flush=True)
        done = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
        print(done.stdout.strip(), flush=True)
        faults = faults_of(killed, whole, prompts=arguments.prompts)
        if done.returncode:
            faults.append(f"exit code {done.returncode}: {done.stderr.strip()}")
        print("\n".join(faults) or f"all {arguments.prompts} there, none twice, none lost, latents identical")
        sys.exit(bool(faults))


if __name__ == "__main__":
    main()
