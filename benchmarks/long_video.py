"""What dual-scope attention gains over other settings in long videos of `mini`: the study's harness, resumable.

    python benchmarks/long_video.py [--frames 96 320] [--scenes 24] [--seeds 2] [--settings dual dense ...]
                                    [--steps 12] [--guidance 1] [--out build/long_video.csv] [--summary]

Every video is measured by `vinfinity.evaluate` and read by the world's recogniser, which knows what each clip of 16
frames should show. What a setting knows of its borders is not used: all are measured alike, with seams looked for every
16 frames. A line of CSV per video is written at once; the same command goes on after any end. Each line has its steps,
guidance and the first digits of the digest of the denoiser's weights; lines with others are never mixed. Its seconds
are those on a processor, of all processes; times on different processors are never compared. --summary prints the
tables of the study: means and paired differences from `dual`, with bootstrap intervals. For docs/proof/long-video.md,
copy the file to docs/data/long-video.csv and run `python -m scripts.figures`.

Needs the embedded model alone. A video of 96 frames takes some 15 seconds of one core.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import freenoise
import numpy as np
import torch

import vinfinity
from vinfinity.config import RunConfig
from vinfinity.errors import InputError, VinfinityError
from vinfinity.machine.host import find_processor
from vinfinity.weights.card import read_card, weights_digest

ROOT = Path(__file__).parents[1]
MINI = ROOT / "training" / "mini"
CLIP = 16
BASE = "dual"
OFF = float("-inf")


@dataclass(frozen=True)
class Variant:
    """A setting of the study. settings: of `vinfinity.generate`. apart: whether each 16 frames are a scene of their
    own. freenoise: whether noise and attention are FreeNoise's, see freenoise.py.

    ranks: processes that share the video, for settings in which their number matters.
    """

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False
    freenoise: bool = False
    ranks: int = 1


def phases(*biases: tuple[int, float, float]) -> dict[str, Any]:
    """attention.schedule from (above, local, anchors)."""
    return {"attention.schedule": [{"above": a, "local": b, "anchors": c} for a, b, c in biases]}


# what all settings share but those that name another one, whatever the model's default
PAPER = phases((800, 0.0, 10.0), (-1, 10.0, 0.0))
VARIANTS = {
    BASE: Variant("dual scope with the paper's schedule"),
    "unbiased": Variant("dual scope without biases", phases((-1, 0.0, 0.0))),
    "early-bias": Variant("the paper's bias above t = 800 alone", phases((800, 0.0, 10.0), (-1, 0.0, 0.0))),
    "late-bias": Variant("the paper's bias up to t = 800 alone", phases((800, 0.0, 0.0), (-1, 10.0, 0.0))),
    "bias-2": Variant("biases of 2 for 10", phases((800, 0.0, 2.0), (-1, 2.0, 0.0))),
    "moving": Variant("anchors that move by a frame per step", {"attention.moving_anchors": True}),
    "local": Variant("local scope alone", {"attention.anchors": 0}),
    "dense": Variant("plain attention over all frames", {"attention.trained_frames": 1_000_000}),
    "apart": Variant("clips of 16 frames that see nothing of each other", apart=True),
    "freenoise": Variant(
        "FreeNoise: shuffled noise, attention in windows of 16 frames, one every 4 frames", freenoise=True
    ),
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
COLUMNS = ("setting", "frames", "scene", "seed", "steps", "guidance", "weights", "processor", "seconds")
# significant digits of figures in the file
DIGITS = 6
# what tells the videos of a study apart: setting, frames, scene, seed, steps, guidance, weights
Key = tuple[str, int, int, int, int, float, str]


def scenes(count: int) -> list[Any]:
    """Return the first scenes of a fixed sequence, with their captions."""
    world = _world()
    generator = np.random.default_rng(2026)
    return [world.sample_scene(generator) for _ in range(count)]


def settings_of(variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a variant's videos. given: those that all variants share, such as steps."""
    return {**given, **PAPER, **variant.settings}


def generate(variant: Variant, prompt: str, *, frames: int, seed: int, given: Mapping[str, Any]) -> Any:
    """Return the video of one setting. given: settings that all share, such as steps."""
    settings = settings_of(variant, given)
    if variant.freenoise:
        return freenoise.generate(prompt, frames=frames, seed=seed, device="cpu", **settings)
    text: Any = prompt
    if variant.apart:
        starts = range(0, frames, CLIP)
        text = [{"text": prompt, "at": start, "cut": start > 0} for start in starts]
    ranks = None if variant.ranks == 1 else min(variant.ranks, frames)
    return vinfinity.generate(text, gpus=ranks, frames=frames, seed=seed, device="cpu", **settings)


def read(frames: np.ndarray, scene: Any) -> dict[str, float]:
    """Return what the recogniser sees in the clips of a video.

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


def measure(
    variant: Variant, scene: Any, *, frames: int, seed: int, given: Mapping[str, Any]
) -> dict[str, float]:
    """Return all figures of one video."""
    started = processor_seconds()
    video = generate(variant, _world().caption(scene), frames=frames, seed=seed, given=given)
    seconds = processor_seconds() - started
    # the pictures alone: a setting that knows its cuts would be excused from them
    result = vinfinity.evaluate(video.frames, fps=video.fps, every=CLIP)
    figures = {name: value for name, value in result.figures.items() if value is not None}
    found = {"seconds": seconds, **figures, **read(video.frames, scene)}
    return {name: float(f"{value:.{DIGITS}g}") for name, value in found.items()}


def processor() -> str:
    """Return the name of the processor and its widest instructions, on which times depend."""
    found = find_processor()
    return f"{found.name} with {found.vectors}" if found.vectors else found.name


def processor_seconds() -> float:
    """Time on a processor of this process and of those that have ended: other work on the machine does not count."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


# ---- results ----


def append(path: Path, row: Mapping[str, object], names: Sequence[str]) -> None:
    """Add a line; the file is complete after each."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


def planned(options: argparse.Namespace, config: RunConfig) -> Iterator[Key]:
    """Return all videos: cheap ones first, all settings of a video together. config: holds their steps and guidance."""
    weights = weights_digest(read_card(config.model).folder / "unet")[:8]
    for frames in sorted(options.frames):
        for scene in range(options.scenes):
            for seed in range(options.seeds):
                for setting in options.settings:
                    yield setting, frames, scene, seed, config.steps, config.guidance, weights


def key(row: Mapping[str, str]) -> Key:
    """Return the video of a line."""
    numbers = (int(row[name]) for name in ("frames", "scene", "seed", "steps"))
    return row["setting"], *numbers, float(row["guidance"]), row["weights"]  # type: ignore[return-value]


def read_results(path: Path) -> list[dict[str, str]]:
    """Return the existing lines. Raises InputError if they lack columns, as lines of other versions do."""
    rows = _study().read_rows(path)
    missing = [name for name in COLUMNS if rows and not rows[0].get(name)]
    if missing:
        problem = f"has lines without {', '.join(missing)}"
        raise InputError("--out", path, "name a new file", problem=problem)
    return rows


def _study() -> Any:
    """Tables and plots, which the documentation shares."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from scripts.figures import study

    return study


def _world() -> Any:
    if str(MINI) not in sys.path:
        sys.path.append(str(MINI))
    import world

    return world


def main(arguments: Sequence[str] | None = None) -> None:
    """Return the command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[96], help="lengths, at least 32 [96]")
    parser.add_argument("--scenes", type=int, default=24, help="[%(default)s]")
    parser.add_argument("--seeds", type=int, default=2, help="videos per scene [%(default)s]")
    parser.add_argument("--settings", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="SETTING")
    parser.add_argument("--steps", type=int, help="denoising steps [the model's]")
    parser.add_argument("--guidance", type=float, help="guidance; 1 is without [the model's]")
    parser.add_argument("--out", type=Path, default=Path("build/long_video.csv"), help="[%(default)s]")
    parser.add_argument("--summary", action="store_true", help="print what is there, and make nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if not options.summary:
            make(options)
        print(_study().summary(read_results(options.out)))
    except VinfinityError as error:
        sys.exit(f"error: {error}")


def make(options: argparse.Namespace) -> None:
    """Return all videos that have no line yet."""
    from vinfinity.evaluation.figures import FIGURES

    if min(options.frames) < 2 * CLIP:
        problem, remedy = "is shorter than two clips", f"give at least {2 * CLIP}"
        raise InputError("--frames", min(options.frames), remedy, problem=problem)
    names = [*COLUMNS, *READ, *FIGURES]
    given = {
        name: getattr(options, name) for name in ("steps", "guidance") if getattr(options, name) is not None
    }
    config = vinfinity.load_config(prompt="a red ball", **given)
    done = {key(row) for row in read_results(options.out)}
    found = scenes(options.scenes)
    todo = [video for video in planned(options, config) if video not in done]
    for number, video in enumerate(todo, 1):
        setting, frames, scene, seed, *_ = video
        figures = measure(VARIANTS[setting], found[scene], frames=frames, seed=seed, given=given)
        row = dict(zip(COLUMNS, video, strict=False))
        append(options.out, {**row, "processor": processor(), **figures}, names)
        print(f"{number} of {len(todo)}: {setting}, {frames} frames, {figures['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
