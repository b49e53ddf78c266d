"""What `reuse.interval` gains and costs: denoising time, and PSNR of the frames against those of the exact run.

python benchmarks/reuse.py [--frames 96] [--intervals 2 3 5] [--depth 1] [--prompt TEXT] [--seed 0]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from vinfinity.media.mp4 import read_video


def generate(video: Path, given: argparse.Namespace, *settings: str) -> tuple[np.ndarray, float]:
    """The frames of a run, (f, h, w, 3), and the seconds that its denoising took."""
    command = [
        sys.executable,
        "-m",
        "vinfinity",
        "generate",
        "--prompt",
        given.prompt,
        "--seed",
        str(given.seed),
    ]
    command += [
        "--frames",
        str(given.frames),
        "--out",
        str(video),
        "video.crf=0",
        "video.pixel_format=yuv444p",
    ]
    subprocess.run([*command, *settings], check=True, capture_output=True)
    record = json.loads((video.with_suffix(".run") / "run.json").read_text(encoding="utf-8"))
    return read_video(video), record["seconds"]["denoising"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--intervals", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--prompt", default="a red ball bouncing over green grass")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        exact, seconds = generate(Path(folder) / "exact.mp4", given)
        print(f"exact: {seconds:.1f} s")
        for interval in given.intervals:
            settings = (f"reuse.interval={interval}", f"reuse.depth={given.depth}")
            frames, taken = generate(Path(folder) / f"{interval}.mp4", given, *settings)
            error = ((frames.astype(np.float64) - exact) ** 2).mean()
            psnr = 10 * np.log10(255**2 / max(error, 1e-9))
            print(
                f"interval {interval}: {taken:.1f} s, {seconds / taken:.2f} times as fast, PSNR {psnr:.1f} dB"
            )


if __name__ == "__main__":
    main()
