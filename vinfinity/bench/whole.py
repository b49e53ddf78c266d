"""Whole runs of the command line, each a process of its own: time and memory against the length of the video."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vinfinity.errors import VinfinityError

PROMPT = "a red ball bouncing over green grass"


@dataclass(frozen=True)
class Whole:
    """One run. Seconds of its two phases; peak: bytes, of the device where it is a GPU, of rank 0's process else."""

    frames: int
    denoising: float
    decoding: float
    peak: int

    @property
    def per_frame(self) -> float:
        """Seconds."""
        return (self.denoising + self.decoding) / self.frames


def measure_runs(
    frames: Sequence[int],
    options: Sequence[str],
    *,
    model: str = "mini",
    prompt: str = PROMPT,
) -> list[Whole]:
    """Generates a video of each length. options: further ones of `vinfinity generate`.

    Raises VinfinityError where a run fails, with what it said.
    """
    made = []
    with tempfile.TemporaryDirectory(prefix="vinfinity-") as name:
        for count in frames:
            video = Path(name) / f"{count}.mp4"
            command = [sys.executable, "-m", "vinfinity", "generate", "--prompt", prompt, "--model", model]
            command += ["--frames", str(count), "--out", str(video), *options]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines()[-1:]
                raise VinfinityError(f"a run of {count} frames failed: {' '.join(said)}", done.returncode)
            record = json.loads((video.with_suffix(".run") / "run.json").read_text(encoding="utf-8"))
            seconds = record["seconds"]
            made.append(Whole(count, seconds["denoising"], seconds["decoding"], record["peak_memory"]))
            video.unlink()
    return made


def runs_table(runs: Sequence[Whole]) -> list[tuple[str, ...]]:
    """Rows for people; the slope of memory is that from the row before, time per frame also against the first row."""
    rows: list[tuple[str, ...]] = [
        ("frames", "denoising", "decoding", "per frame", "to the first", "peak memory", "per further frame")
    ]
    for i, one in enumerate(runs):
        before = runs[i - 1] if i else None
        slope = (
            ""
            if before is None
            else f"{(one.peak - before.peak) / (one.frames - before.frames) / 1e3:.0f} kB"
        )
        rows.append(
            (
                str(one.frames),
                f"{one.denoising:.1f} s",
                f"{one.decoding:.1f} s",
                f"{1000 * one.per_frame:.0f} ms",
                f"{one.per_frame / runs[0].per_frame:.3f}",
                f"{one.peak / 2**20:.0f} MiB",
                slope,
            )
        )
    return rows


def write_json(path: Path, runs: Sequence[Whole]) -> None:
    """The figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(one) for one in runs], indent=2) + "\n", encoding="utf-8")
