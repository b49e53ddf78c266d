"""What dual-scope attention gains over other settings in long videos of `mini`: the study's harness, resumable.

    python benchmarks/long_video.py [--frames 96 320] [--scenes 24] [--seeds 2] [--settings dual dense ...]
                                    [--out build/long_video.csv] [--summary]

Every video is measured by `vinfinity.evaluate` and read by the world's recogniser, which knows what each clip of 16
frames should show. A line of CSV per video is written at once; the same command goes on after any end. --summary
prints, for each setting and figure, the mean, its paired difference from `dual` and the interval of 95 %. Needs
the embedded model alone; one video of 96 frames takes about a minute on one core.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vinfinity
from vinfinity.evaluation.statistics import paired_test

MINI = Path(__file__).parents[1] / "training" / "mini"
CLIP = 16
BASE = "dual"
OFF = float("-inf")


@dataclass(frozen=True)
class Variant:
    """A setting of the study. settings: of `vinfinity.generate`. apart: whether each 16 frames are a scene of their
    own.

    ranks: processes that share the video, for settings in which their number matters.
    """

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False
    ranks: int = 1


def phases(*biases: tuple[int, float, float]) -> dict[str, Any]:
    """attention.schedule from (above, local, anchors)."""
    return {"attention.schedule": [{"above": a, "local": b, "anchors": c} for a, b, c in biases]}


VARIANTS = {
    BASE: Variant("dual scope with the paper's schedule"),
    "unbiased": Variant("dual scope without biases", phases((-1, 0.0, 0.0))),
    "moving": Variant("anchors that move by a frame per step", {"attention.moving_anchors": True}),
    "local": Variant("local scope alone", {"attention.anchors": 0}),
    "dense": Variant("plain attention over all frames", {"attention.trained_frames": 1_000_000}),
    "apart": Variant("clips of 16 frames that see nothing of each other", apart=True),
    "rank-norm": Variant("GroupNorm per rank, four ranks", {"attention.norm": "rank"}, ranks=4),
    "entropy": Variant("entropy scaling", {"attention.entropy_scaling": True}),
    "local-4": Variant("4 neighbours on either side", {"attention.local": 4}),
    "local-16": Variant("16 neighbours on either side", {"attention.local": 16}),
    "anchors-8": Variant("8 anchors", {"attention.anchors": 8}),
    "anchors-32": Variant("32 anchors", {"attention.anchors": 32}),
    "t-600": Variant("anchors' bias above t = 600", phases((600, 0.0, 10.0), (-1, 10.0, 0.0))),
    "t-900": Variant("anchors' bias above t = 900", phases((900, 0.0, 10.0), (-1, 10.0, 0.0))),
}
# what the recogniser adds to the figures of `evaluate`; all are better if higher
READ = ("read.right", "read.steady", "read.same")
COLUMNS = ("setting", "frames", "scene", "seed", "seconds")


def scenes(count: int) -> list[Any]:
    """The first scenes of a fixed sequence, with their captions."""
    world = _world()
    generator = np.random.default_rng(2026)
    return [world.sample_scene(generator) for _ in range(count)]


def generate(variant: Variant, prompt: str, *, frames: int, seed: int, steps: int | None) -> Any:
    """The video of one setting."""
    settings = dict(variant.settings)
    if steps is not None:
        settings["steps"] = steps
    text: Any = prompt
    if variant.apart:
        starts = range(0, frames, CLIP)
        text = [{"text": prompt, "at": start, "cut": start > 0} for start in starts]
    ranks = None if variant.ranks == 1 else min(variant.ranks, frames)
    return vinfinity.generate(text, gpus=ranks, frames=frames, seed=seed, device="cpu", **settings)


def read(frames: np.ndarray, scene: Any) -> dict[str, float]:
    """What the recogniser sees in the clips of a video.

    read.right: share of clips and aspects (background, colour, kind, motion) that agree with the scene. read.steady:
    share of frames that show one subject in the clip's colour. read.same: share of clips with the background, colour
    and kind of the first one.
    """
    _world()
    import recognise

    clips = [frames[start : start + CLIP] for start in range(0, len(frames) - CLIP + 1, CLIP)]
    readings = [recognise.read_clip(clip) for clip in clips]
    right = [value for reading in readings for value in recognise.right(reading, scene).values()]
    looks = [(reading.background, reading.colour, reading.kind) for reading in readings]
    return {
        "read.right": float(np.mean(right)),
        "read.steady": float(np.mean([reading.steady for reading in readings])),
        "read.same": float(np.mean([look == looks[0] for look in looks])),
    }


def measure(variant: Variant, scene: Any, *, frames: int, seed: int, steps: int | None) -> dict[str, float]:
    """All figures of one video."""
    started = time.monotonic()
    video = generate(variant, _world().caption(scene), frames=frames, seed=seed, steps=steps)
    seconds = time.monotonic() - started
    result = vinfinity.evaluate(video, every=CLIP)
    figures = {name: value for name, value in result.figures.items() if value is not None}
    return {"seconds": seconds, **figures, **read(video.frames, scene)}


# ---- results ----


def read_results(path: Path) -> list[dict[str, str]]:
    """The lines that are there already."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: Mapping[str, object], names: Sequence[str]) -> None:
    """Add a line; the file is complete after each."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


def planned(options: argparse.Namespace) -> Iterator[tuple[str, int, int, int]]:
    """(setting, frames, scene, seed) of all videos: what is cheap first, all settings of a video together."""
    for frames in sorted(options.frames):
        for scene in range(options.scenes):
            for seed in range(options.seeds):
                for setting in options.settings:
                    yield setting, frames, scene, seed


def key(row: Mapping[str, str]) -> tuple[str, int, int, int]:
    return row["setting"], int(row["frames"]), int(row["scene"]), int(row["seed"])


def summary(
    rows: Sequence[Mapping[str, str]], *, frames: int, figures: Sequence[str]
) -> list[tuple[str, ...]]:
    """For each setting: means, and paired differences from the base with their intervals, as text."""
    by_video = {key(row): row for row in rows if int(row["frames"]) == frames}
    lines = [("setting", "videos", *figures)]
    for setting in dict.fromkeys(name for name, *_ in by_video):
        own = {video[2:]: row for video, row in by_video.items() if video[0] == setting}
        base = {video[2:]: row for video, row in by_video.items() if video[0] == BASE}
        cells = [_cell(own, base if setting != BASE else {}, figure) for figure in figures]
        lines.append((setting, str(len(own)), *cells))
    return lines


def _cell(own: Mapping[Any, Mapping[str, str]], base: Mapping[Any, Mapping[str, str]], figure: str) -> str:
    values = [float(row[figure]) for row in own.values() if row.get(figure)]
    if not values:
        return "-"
    pairs = [
        float(own[video][figure]) - float(base[video][figure])
        for video in own
        if video in base and own[video].get(figure) and base[video].get(figure)
    ]
    test = paired_test(pairs)
    mean = f"{np.mean(values):.3f}"
    return mean if test is None else f"{mean} ({test.mean:+.3f}: {test.low:+.3f} to {test.high:+.3f})"


def _world() -> Any:
    if str(MINI) not in sys.path:
        sys.path.append(str(MINI))
    import world

    return world


SHOWN = (
    "read.right",
    "read.steady",
    "read.same",
    "motion.length",
    "motion.warp_over_motion",
    "flicker.pulsing",
    "seams.ratio",
    "drift.largest",
    "repetition.strength",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[96], help="lengths, at least 32 [96]")
    parser.add_argument("--scenes", type=int, default=24, help="[%(default)s]")
    parser.add_argument("--seeds", type=int, default=2, help="videos per scene [%(default)s]")
    parser.add_argument("--settings", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="SETTING")
    parser.add_argument("--steps", type=int, help="denoising steps [the model's]")
    parser.add_argument("--out", type=Path, default=Path("build/long_video.csv"), help="[%(default)s]")
    parser.add_argument("--summary", action="store_true", help="print what is there, and make nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not options.summary:
        make(options)
    rows = read_results(options.out)
    for frames in sorted({int(row["frames"]) for row in rows}):
        print(f"\n{frames} frames\n")
        for line in summary(rows, frames=frames, figures=SHOWN):
            print(f"| {' | '.join(line)} |")


def make(options: argparse.Namespace) -> None:
    """All videos that have no line yet."""
    from vinfinity.evaluation.figures import FIGURES

    names = [*COLUMNS, *READ, *FIGURES]
    done = {key(row) for row in read_results(options.out)}
    found = scenes(options.scenes)
    todo = [video for video in planned(options) if video not in done]
    for number, (setting, frames, scene, seed) in enumerate(todo, 1):
        figures = measure(VARIANTS[setting], found[scene], frames=frames, seed=seed, steps=options.steps)
        row = {"setting": setting, "frames": frames, "scene": scene, "seed": seed, **figures}
        append(options.out, row, names)
        print(f"{number} of {len(todo)}: {setting}, {frames} frames, {figures['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
