"""Measures how well the ends of a looping video join, over many videos.

    python benchmarks/loops.py [--videos 12] [--frames 64] [--loops-only] [--keep FOLDER] [--out FILE] [KEY=VALUE ...]

For each video, it takes the mean absolute difference from one frame to the next, of latents and of pictures, and the
same from the last frame to the first. `share below` is the share of all other differences of that video that are
smaller: if the end were like any other place, it would be 0.5 on average, and below 1 in all but a few videos. The same
prompt and seed without `loop` is measured for comparison. --out writes the figures as CSV or JSON.
"""

import argparse
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from joins import PROMPTS

import vinfinity
from vinfinity.bench.report import write_records


@dataclass(frozen=True)
class Ends:
    """The difference between the last frame and the first. kind: "latents" or "pictures". lowest, highest: those of the
    differences between consecutive frames. share_below: share of these that are smaller.
    """

    video: int
    prompt: str
    loop: bool
    kind: str
    difference: float
    lowest: float
    highest: float
    share_below: float


def ends(frames: np.ndarray) -> dict[str, float]:
    """Return the figures of a video. frames: (f, ...)."""
    values = frames.astype(np.float32)
    apart = np.abs(values - np.roll(values, -1, axis=0)).reshape(len(values), -1).mean(1)
    others, closing = apart[:-1], apart[-1]
    return {
        "difference": float(closing),
        "lowest": float(others.min()),
        "highest": float(others.max()),
        "share_below": float((others < closing).mean()),
    }


def main() -> None:
    """Make the videos, print a line for each and the averages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--loops-only", action="store_true", help="leave out the videos without `loop`")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--keep", type=Path, help="folder for the videos")
    parser.add_argument("--out", type=Path, help="file for the figures (.csv or .json)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further settings")
    args = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in args.settings)
    pipe = vinfinity.Pipeline.from_pretrained(args.model)
    found: list[Ends] = []
    kinds = (True,) if args.loops_only else (True, False)
    for video in range(args.videos):
        prompt = PROMPTS[video % len(PROMPTS)]
        for loop in kinds:
            made = pipe(prompt, frames=args.frames, seed=video, loop=loop, **settings)
            if args.keep is not None:
                args.keep.mkdir(parents=True, exist_ok=True)
                made.save(args.keep / f"{video:02}-{'loop' if loop else 'plain'}.mp4", overwrite=True)
            latents = np.moveaxis(made.latents[0].numpy(), 1, 0)
            for kind, frames in (("latents", latents), ("pictures", made.frames)):
                found.append(Ends(video, prompt, loop, kind, **ends(frames)))
                end = found[-1]
                print(
                    f"{video:3} {'loop ' if loop else 'plain'} {kind:8} last to first {end.difference:.4f}, "
                    f"others {end.lowest:.4f} to {end.highest:.4f}, share below {end.share_below:.2f}  {prompt}",
                    flush=True,
                )
    for loop in kinds:
        for kind in ("latents", "pictures"):
            some = [end for end in found if (end.loop, end.kind) == (loop, kind)]
            within = sum(end.difference <= end.highest for end in some)
            share = np.mean([end.share_below for end in some])
            name = f"{'loop' if loop else 'plain'}, {kind}"
            print(f"{name}: within the others in {within} of {len(some)}, share below {share:.2f}")
    if args.out is not None:
        write_records(args.out, [asdict(end) for end in found])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
