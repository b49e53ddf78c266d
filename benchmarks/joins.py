"""How a stretch that `vinfinity redo` made anew joins the frames around it, over many videos.

    benchmarks/joins.py [--videos 12] [--frames 96] [--redo 40:60] [--keep FOLDER] [KEY=VALUE ...]

For each video, the mean absolute difference of the latents from one frame to the next: across the two joins, and inside
the stretch. Were a join like any other place, its difference would be the largest of all as rarely as any other:
`share below` is the share of the differences inside that are smaller, 0.5 on average. The video before the redo, which
has no joins, is measured at the same places. Settings are those of `vinfinity redo`. Ends with exit code 1 where a
frame outside of the stretch changed.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.cli import main as vinfinity
from vinfinity.runs.parts import read_manifest

PROMPTS = (
    "a red ball bouncing over green grass",
    "a blue boat moving right over the blue sea",
    "a yellow star circling in the starry night",
    "a green car moving left in the sandy desert",
    "a pink heart swaying over white snow",
    "a blue fish standing still over the blue sea",
)


def run(*command: str) -> None:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            vinfinity(list(command))
        except SystemExit as ended:
            if ended.code:
                raise


def latents_of(video: Path, frames: int) -> Tensor:
    """(c, f, h, w)."""
    return read_manifest(video.with_suffix(".run") / "latents").read(range(frames))


def differences(latents: Tensor) -> Tensor:
    """From each frame to the next: (f - 1,)."""
    return latents.diff(dim=1).abs().mean(dim=(0, 2, 3))


def judged(steps: Tensor, stretch: range) -> tuple[list[float], list[bool]]:
    """For each join, the share of the differences inside that are smaller, and whether it is within their range."""
    inside = steps[stretch.start : stretch.stop - 1]
    joins = [steps[stretch.start - 1], steps[stretch.stop - 1]]
    return [float((inside < join).float().mean()) for join in joins], [
        bool(inside.min() <= join <= inside.max()) for join in joins
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--redo", default="40:60")
    parser.add_argument("--keep", type=Path, help="leave the runs here, and use those that are there")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    start, stop = map(int, options.redo.split(":"))
    stretch, changed = range(start, stop), 0
    shares: dict[str, list[float]] = {"before": [], "after": []}
    within: dict[str, list[bool]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory(prefix="vinfinity-joins-") as folder:
        work = options.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for number in range(options.videos):
            prompt, video, new = (
                PROMPTS[number % len(PROMPTS)],
                work / f"{number}.mp4",
                work / f"{number}-redo.mp4",
            )
            if not video.exists():
                arguments = ["--frames", str(options.frames), "--seed", str(number), "--out", str(video)]
                run("generate", "--prompt", prompt, *arguments, "--overwrite")
            arguments = ["--frames", options.redo, "--seed", str(1000 + number), "--out", str(new)]
            run("redo", str(video), *arguments, "--overwrite", *options.settings)
            old, made = (latents_of(path, options.frames) for path in (video, new))
            outside = torch.ones(options.frames, dtype=torch.bool)
            outside[start:stop] = False
            changed += not torch.equal(old[:, outside], made[:, outside])
            line = f"{number:3} {prompt:48}"
            for name, latents in (("before", old), ("after", made)):
                steps = differences(latents)
                share, inside = judged(steps, stretch)
                shares[name] += share
                within[name] += inside
                low, high = steps[start : stop - 1].min(), steps[start : stop - 1].max()
                line += (
                    f"  {name} {steps[start - 1]:.3f} {steps[stop - 1]:.3f} inside {low:.3f} to {high:.3f}"
                )
            departed = (old[:, start:stop] - made[:, start:stop]).abs().mean()
            print(f"{line}  changed by {departed:.3f}", flush=True)
    for name, found in shares.items():
        print(
            f"{name}: share below {sum(found) / len(found):.2f}, "
            f"{sum(within[name])} of {len(within[name])} joins within the range inside"
        )
    print(f"videos with a changed frame outside: {changed}")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
