"""Measures how well scenes keep apart in videos whose prompt changes halfway, with settings of the study.

    python benchmarks/stories.py [--stories 24] [--frames 96] [--settings dual unbiased] [--steps 12] [--out FILE]

Each video of `mini` has two prompts, the second from its middle on, with the blend of 16 frames that is the default.
The first third of the frames is read for the first prompt and the last third for the second, by the world's
recogniser: see `read` in long_video.py. The frames between, in which one becomes the other, are left out. --out writes
the figures as CSV or JSON.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import long_video
import numpy as np
import torch

import vinfinity
from vinfinity.bench.report import write_records
from vinfinity.evaluation.statistics import paired_test

# those that are settings of a run, and nothing else
SETTINGS = [
    name
    for name, variant in long_video.VARIANTS.items()
    if not variant.apart and not variant.freenoise and variant.ranks == 1
]


@dataclass(frozen=True)
class Story:
    """What the recogniser reads in one video. right: share of clips and aspects that agree with the prompt of their
    time. steady: share of frames that show one subject in the clip's colour.
    """

    setting: str
    seed: int
    first: str
    second: str
    right: float
    steady: float


def measure(setting: str, *, seed: int, frames: int, given: Mapping[str, Any]) -> Story:
    """Return the story of a seed: the scenes 2 · seed and 2 · seed + 1 of the study. given: settings that all share."""
    scenes = long_video.scenes(2 * seed + 2)[-2:]
    first, second = (long_video._world().caption(scene) for scene in scenes)
    prompts = [{"text": first, "at": 0}, {"text": second, "at": frames // 2}]
    settings = long_video.settings_of(long_video.VARIANTS[setting], given)
    video = vinfinity.generate(prompts, frames=frames, seed=seed, device="cpu", **settings)
    third = frames // 3
    parts = [
        long_video.read(part, scene)
        for part, scene in zip((video.frames[:third], video.frames[-third:]), scenes, strict=True)
    ]
    right, steady = (float(np.mean([part[name] for part in parts])) for name in ("read.right", "read.steady"))
    return Story(setting=setting, seed=seed, first=first, second=second, right=right, steady=steady)


def print_summary(found: Sequence[Story], settings: Sequence[str]) -> None:
    """Return the mean of each figure, and its differences from the first setting, paired by seed."""
    for figure in ("right", "steady"):
        values = {
            setting: np.array([getattr(story, figure) for story in found if story.setting == setting])
            for setting in settings
        }
        for setting, own in values.items():
            line = f"{figure} {own.mean():.3f} in {len(own)} videos of {setting}"
            difference = None if setting == settings[0] else paired_test(list(own - values[settings[0]]))
            if difference is not None:
                mean, low, high, p = difference.mean, difference.low, difference.high, difference.p
                line += f", {mean:+.3f} ({low:+.3f} to {high:+.3f}, p = {p:.2f}) from {settings[0]}"
            print(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Return the command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stories", type=int, default=24, help="[%(default)s]")
    parser.add_argument("--frames", type=int, default=96, help="at least 48 [%(default)s]")
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        default=["dual", "unbiased"],
        metavar="SETTING",
        help="of the study [dual unbiased]",
    )
    parser.add_argument("--steps", type=int, help="denoising steps [the model's]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as CSV or JSON")
    options = parser.parse_args(arguments)
    if options.frames < 3 * long_video.CLIP:
        parser.error(
            f"--frames: {options.frames} is shorter than three clips; give at least {3 * long_video.CLIP}"
        )
    torch.set_num_threads(1)
    given = {} if options.steps is None else {"steps": options.steps}
    found = []
    for seed in range(options.stories):
        for setting in options.settings:
            story = measure(setting, seed=seed, frames=options.frames, given=given)
            found.append(story)
            print(
                f"{seed:3} {setting:10} right {story.right:.2f}, steady {story.steady:.2f}  "
                f"{story.first}, then {story.second}",
                flush=True,
            )
    print_summary(found, options.settings)
    if options.out is not None:
        write_records(options.out, [asdict(story) for story in found])


if __name__ == "__main__":
    main()
