"""Evaluate long videos made by the package itself: what does each window of 16 frames show?

Every prompt becomes one video through `vinfinity generate` with the model's own settings. Per window:
shares right of background, colour, kind and motion; and a contact sheet of the videos, one frame in eight.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import world
from common import WORK
from recognise import read_clip, shares

WINDOW = 16


def read_video(path: Path) -> world.Clip:
    """All frames of a video file, uint8 (f, h, w, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def main() -> None:
    """Generate, read, print and write figures and a sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument(
        "--first", type=int, default=0, help="the number of the first prompt, and of its seed"
    )
    parser.add_argument("--name", default="long")
    parser.add_argument("options", nargs="*", help="further options of vinfinity generate")
    args = parser.parse_args()
    rng = np.random.default_rng(4242)
    scenes = [world.sample_scene(rng) for _ in range(args.first + args.videos)][args.first :]
    folder = args.work / args.name
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for i, scene in enumerate(scenes):
        path = folder / f"{args.first + i:03d}.mp4"
        command = [sys.executable, "-m", "vinfinity", "generate", "--prompt", world.caption(scene)]
        command += [
            "--frames",
            str(args.frames),
            "--seed",
            str(args.first + i),
            "--out",
            str(path),
            "--overwrite",
        ]
        subprocess.run([*command, *args.options], check=True, stdout=subprocess.DEVNULL)
        videos.append(read_video(path))
    windows = []
    for start in range(0, args.frames - WINDOW + 1, WINDOW):
        readings = [read_clip(video[start : start + WINDOW]) for video in videos]
        figures = shares(readings, scenes)
        print(f"frames {start:3d} to {start + WINDOW - 1:3d}", json.dumps(figures), flush=True)
        windows.append({"start": start, "figures": figures, "readings": [asdict(r) for r in readings]})
    record = {"prompts": [world.caption(scene) for scene in scenes], "windows": windows}
    (args.work / f"{args.name}.json").write_text(json.dumps(record, indent=1))
    rows = [list(video[:: max(1, args.frames // 12)]) for video in videos]
    world.contact_sheet(rows, args.work / "pictures" / f"{args.name}.png")


if __name__ == "__main__":
    main()
