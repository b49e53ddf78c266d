"""Measures how much of a video survives when another colour is asked for, by the recogniser of `mini`'s world.

    python benchmarks/recolour.py [--videos 12] [--strengths 0.6 0.8 1] [--keep FOLDER] [--sheet PNG] [--out FILE]

A clip of 16 frames is drawn, which shows a red ball in some motion over some background. A video starts from it, with
the prompt of the same clip in blue. The recogniser then says what that shows: its colour, which should be new, and its
motion, subject and background, which should be those of the clip. The prompt names these, too; so the mean distance
between the ball and that of the clip is measured as well, in heights of the picture. With strength 1, hardly anything
but the text decides. The drawn clips themselves, written and read again, are measured as `clip`. --out writes a line
per video as CSV or JSON.
"""

import argparse
import itertools
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import vinfinity
from vinfinity.bench.report import write_records
from vinfinity.config import VideoConfig, choose_format
from vinfinity.media.reader import open_reader
from vinfinity.media.sheet import encode_png
from vinfinity.media.writer import VideoWriter
from vinfinity.system.folders import temporary_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "mini"))
import recognise
import world

FRAMES, FPS = 16, 8
WIDTH, HEIGHT = 256, 160
OLD, NEW, SUBJECT = "red", "blue", "ball"
ASPECTS = ("colour", "motion", "kind", "background")


@dataclass(frozen=True)
class Recoloured:
    """What a video shows. strength: 0 for the clip that it starts from. colour, motion, kind, background: whether they
    are as asked for. distance: between the ball and the clip's ball, in heights; NaN if there is none.
    """

    video: int
    strength: float
    motion_of_clip: str
    background_of_clip: str
    colour: bool
    motion: bool
    kind: bool
    background: bool
    distance: float


def clips(count: int) -> list[world.Scene]:
    """Red balls in every motion, over every background in turn."""
    rng = np.random.default_rng(1)
    kinds = itertools.islice(
        zip(itertools.cycle(world.MOTIONS), itertools.cycle(world.BACKGROUNDS), strict=False), count
    )
    return [
        replace(world.sample_scene(rng), subject=SUBJECT, colour=OLD, motion=motion, background=background)
        for motion, background in kinds
    ]


def write_clip(scene: world.Scene, path: Path) -> Path:
    """Draw a clip and write it as a video."""
    video = choose_format(str(path), VideoConfig(crf=8))
    with VideoWriter(path, video, width=WIDTH, height=HEIGHT, fps=FPS) as writer:
        for frame in world.render(scene, np.arange(FRAMES), height=HEIGHT):
            writer.write(frame)
    return path


def path_of(frames: np.ndarray) -> np.ndarray:
    """Return the centre of the subject in each frame, (f, 2) in heights; NaN where there is none."""
    masks = recognise.paint_masks(recognise.at_world_size(frames))
    own = masks[masks.sum((1, 2, 3)).argmax()]
    nowhere = (np.nan, np.nan)
    return np.array(
        [recognise.centre(mask) if mask.sum() >= recognise.MIN_PIXELS else nowhere for mask in own]
    )


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean distance between two paths; what leaves the picture at one side enters at the other."""
    apart = np.abs(one - other)
    apart[:, 0] = np.minimum(apart[:, 0], world.ASPECT - apart[:, 0])
    return float(np.nanmean(np.hypot(apart[:, 0], apart[:, 1])))


def read(
    number: int, scene: world.Scene, frames: np.ndarray, *, clip: np.ndarray, strength: float
) -> Recoloured:
    """Return what the frames show. clip: the clip that they start from. strength: 0 for the clip itself."""
    expected = scene if strength == 0 else replace(scene, colour=NEW)
    right = recognise.right(recognise.read_clip(frames), expected)
    apart = distance(path_of(frames), path_of(clip))
    return Recoloured(number, strength, scene.motion, scene.background, **right, distance=apart)


def sheet_row(clip: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Four frames of a clip, and the same of the video that started from it, side by side."""
    some = [0, 5, 10, 15]
    return np.concatenate([*clip[some], *made[some]], axis=1)


def main() -> None:
    """Make the videos, print a line for each and the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.6, 0.8, 1.0])
    parser.add_argument("--keep", type=Path, help="folder for the videos")
    parser.add_argument("--sheet", type=Path, help="picture of every third clip and its first video")
    parser.add_argument("--out", type=Path, help="file for the figures (.csv or .json)")
    args = parser.parse_args()
    pipe = vinfinity.Pipeline.from_pretrained("mini")
    found: list[Recoloured] = []
    rows: list[np.ndarray] = []
    with temporary_folder() as folder:
        for number, scene in enumerate(clips(args.videos)):
            clip = write_clip(scene, folder / f"{number}.mp4")
            drawn = np.stack([*open_reader(clip)])
            found.append(read(number, scene, drawn, clip=drawn, strength=0))
            prompt = world.caption(replace(scene, colour=NEW))
            for strength in args.strengths:
                made = pipe(prompt, input={"video": clip, "strength": strength}, seed=number)
                if args.keep is not None:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    made.save(args.keep / f"{number:02}-{strength:g}.mp4", overwrite=True)
                found.append(read(number, scene, made.frames, clip=drawn, strength=strength))
                if number % 3 == 0 and strength == args.strengths[0]:
                    rows.append(sheet_row(drawn, made.frames))
            for one in found[-1 - len(args.strengths) :]:
                wrong = ", ".join(aspect for aspect in ASPECTS if not getattr(one, aspect)) or "nothing"
                shown = f"{number:3} {one.strength:.2f} wrong: {wrong}, {one.distance:.2f} away"
                print(f"{shown}  {prompt}", flush=True)
    for strength in (0.0, *args.strengths):
        some = [one for one in found if one.strength == strength]
        share = {aspect: np.mean([getattr(one, aspect) for one in some]) for aspect in ASPECTS}
        both = np.mean([one.colour and one.motion for one in some])
        away = np.nanmean([one.distance for one in some])
        name = f"strength {strength:g}" if strength else "clip"
        shares = ", ".join(f"{aspect} {value:.0%}" for aspect, value in share.items())
        print(f"{name}: {shares}; colour and motion {both:.0%}; {away:.3f} away")
    if args.sheet is not None:
        args.sheet.write_bytes(encode_png(np.concatenate(rows)))
    if args.out is not None:
        write_records(args.out, [asdict(one) for one in found])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
