"""Whole runs from the command line, each in its own process: time and memory by the length of the video."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from vinfinity.errors import VinfinityError
from vinfinity.system.folders import temporary_folder

PROMPT = "a red ball bouncing over green grass"


@dataclass(frozen=True)
class RunFigures:
    """One run. denoising, decoding: seconds. peak: bytes on the GPU if there is one, else in the process of rank 0."""

    frames: int
    denoising: float
    decoding: float
    peak: int

    @property
    def per_frame(self) -> float:
        """Seconds per frame."""
        return (self.denoising + self.decoding) / self.frames


def measure_runs(
    frames: Sequence[int],
    options: Sequence[str],
    *,
    model: str = "mini",
    prompt: str = PROMPT,
) -> list[RunFigures]:
    """Generate a video of each length. options: additional ones of `vinfinity generate`.

    Raises VinfinityError with the error line of a run that fails.
    """
    runs = []
    with temporary_folder() as folder:
        for count in frames:
            video = folder / f"{count}.mp4"
            command = [sys.executable, "-m", "vinfinity", "generate", "--prompt", prompt, "--model", model]
            command += ["--frames", str(count), "--out", str(video), *options]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                message = " ".join(done.stderr.strip().splitlines()[-1:])
                raise VinfinityError(f"a run of {count} frames failed: {message}", done.returncode)
            record = json.loads((video.with_suffix(".run") / "run.json").read_text(encoding="utf-8"))
            seconds = record["seconds"]
            runs.append(RunFigures(count, seconds["denoising"], seconds["decoding"], record["peak_memory"]))
            video.unlink()
    return runs
