"""Measures what `reuse.interval` gains and costs: denoising time, and PSNR of the frames against those without reuse.

    python benchmarks/reuse.py [--frames 96] [--intervals 2 3 5] [--depth 1] [--prompt TEXT] [--seed 0] [--out FILE]

--out writes the figures as CSV or JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from vinfinity.bench.report import write_records
from vinfinity.media.reader import open_reader


def generate(video: Path, options: argparse.Namespace, *settings: str) -> tuple[np.ndarray, float]:
    """Return the frames of a run, (f, h, w, 3) uint8, and the seconds that denoising took."""
    command = [sys.executable, "-m", "vinfinity", "generate", "--prompt", options.prompt]
    command += ["--seed", str(options.seed), "--frames", str(options.frames), "--out", str(video)]
    # lossless, so that PSNR measures the frames and not the encoder
    command += ["video.crf=0", "video.pixel_format=yuv444p", *settings]
    subprocess.run(command, check=True, capture_output=True)
    record = json.loads((video.with_suffix(".run") / "run.json").read_text(encoding="utf-8"))
    return np.stack([*open_reader(video)]), record["seconds"]["denoising"]


def psnr(frames: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures, in dB."""
    error = ((frames.astype(np.float64) - reference) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=96, help="length of the video [%(default)s]")
    parser.add_argument("--intervals", type=int, nargs="+", default=[2, 3, 5], help="[2 3 5]")
    parser.add_argument("--depth", type=int, default=1, help="reuse.depth [%(default)s]")
    parser.add_argument("--prompt", default="a red ball bouncing over green grass")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--out", type=Path, help="write the figures to this .csv or .json file")
    options = parser.parse_args()
    records: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        reference, exact = generate(Path(folder) / "exact.mp4", options)
        print(f"no reuse: {exact:.1f} s")
        for interval in options.intervals:
            settings = (f"reuse.interval={interval}", f"reuse.depth={options.depth}")
            frames, seconds = generate(Path(folder) / f"{interval}.mp4", options, *settings)
            quality, speedup = psnr(frames, reference), exact / seconds
            print(f"interval {interval}: {seconds:.1f} s, {speedup:.2f} times as fast, PSNR {quality:.1f} dB")
            records.append(
                {
                    "interval": interval,
                    "depth": options.depth,
                    "seconds": seconds,
                    "speedup": speedup,
                    "psnr": quality,
                }
            )
    if options.out is not None:
        write_records(options.out, records)


if __name__ == "__main__":
    main()
