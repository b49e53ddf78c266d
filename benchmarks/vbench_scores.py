"""VBench's prompts as videos, their scores, and a table next to the paper's.

    python benchmarks/vbench_scores.py prompts all_dimension.txt --out vbench.jsonl --samples 5
    vinfinity batch vbench.jsonl --folder build/vbench/192 --frames 192 --out "{prompt}-{sample}.mp4" ...
    python benchmarks/vbench_scores.py score build/vbench/192 --frames 192 --python vbench-env/bin/python
    python benchmarks/vbench_scores.py table

`prompts` writes a row per prompt and sample for `vinfinity batch`, with seeds of its own. `score` cuts videos into
clips of 16 frames, as the paper does, has the package `vbench` (0.1.2 or newer) score them, and adds the means to
build/vbench/scores.json. The package needs an environment of its own, whose Python --python names, its weights, and a
GPU; for flicker alone, neither: `--dimensions temporal_flickering --device cpu`. `table` needs nothing; what was not
scored is "not run".
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vinfinity.errors import InputError, VinfinityError, one_line
from vinfinity.media.reader import open_reader
from vinfinity.system.files import to_json, write_whole

SCORES = Path("build/vbench/scores.json")
# VBench's dimensions of the paper's table 2, in its order, with short titles
DIMENSIONS = {
    "subject_consistency": "subject",
    "background_consistency": "background",
    "temporal_flickering": "flicker",
    "motion_smoothness": "smooth",
    "dynamic_degree": "dynamic",
    "aesthetic_quality": "aesthetic",
    "imaging_quality": "imaging",
}
# the paper's table 2: (method, frames), scores in percent in the order of DIMENSIONS
PAPER: Mapping[tuple[str, int], tuple[float, ...]] = {
    ("VideoCrafter2", 16): (96.85, 98.22, 98.41, 97.73, 42.50, 63.13, 67.22),
    ("FreeNoise", 64): (94.16, 96.63, 98.37, 97.04, 44.44, 60.53, 67.44),
    ("Video-Infinity", 64): (97.77, 93.90, 97.77, 96.84, 81.94, 59.38, 67.90),
    ("StreamingT2V", 192): (75.02, 87.93, 95.96, 94.71, 80.56, 48.08, 57.85),
    ("Video-Infinity", 192): (91.32, 92.93, 97.40, 95.55, 77.78, 55.49, 66.93),
}
OURS = "vinfinity"
LENGTHS = (16, 64, 192)
# frames of a clip that is scored on its own
CLIP = 16
# characters of the reason why a dimension failed
LONGEST_REASON = 200


def rows(prompts: Sequence[str], samples: int) -> Iterator[dict[str, object]]:
    """Yield a row of a batch for each sample of each prompt: VBench's names tell them apart by {sample}."""
    for number, prompt in enumerate(prompts):
        for sample in range(samples):
            yield {"prompt": prompt, "seed": number * samples + sample}


def read_prompts(file: Path) -> list[str]:
    """VBench's prompts: a text file with one a line, or its VBench_full_info.json. Raises InputError."""
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else text.splitlines()
        found = [value["prompt_en"] if isinstance(value, dict) else str(value) for value in values]
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "name VBench's all_dimension.txt or VBench_full_info.json"
        raise InputError("prompts", file, remedy, problem=f"cannot be read ({error})") from None
    return list(dict.fromkeys(prompt.strip() for prompt in found if prompt.strip()))


def cut_clips(video: Path, folder: Path) -> list[Path]:
    """Consecutive clips of 16 frames of a video; what is left at its end is left out."""
    reader = open_reader(video)
    clips: list[Path] = []
    waiting: list[np.ndarray] = []
    for frame in reader:
        waiting.append(frame)
        if len(waiting) == CLIP:
            clips.append(folder / f"{video.stem}-clip{len(clips):04d}.mp4")
            write_clip(clips[-1], waiting, reader.fps)
            waiting = []
    return clips


def write_clip(path: Path, frames: Sequence[np.ndarray], fps: Fraction) -> None:
    """Return an H.264 file of RGB without loss. frames: (h, w, 3) uint8 each.

    Every decoder gives back these frames. Of YUV it would not: OpenCV 4 takes BT.709 for BT.601, and OpenCV and decord
    repeat colours instead of interpolating them.
    """
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"crf": "0", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_clips(videos: Path, folder: Path, *, frames: int) -> list[Path]:
    """Return the clips of all videos of a folder, made anew. frames: the length that each video has.

    Raises InputError if there are none or a video has another length, DamagedError if one cannot be decoded.
    """
    found = sorted(videos.glob("*.mp4"))
    if not found:
        raise InputError("videos", videos, "make them with `vinfinity batch`", problem="has no .mp4 files")
    for video in found:
        length = open_reader(video).frames
        if length != frames:
            remedy = "score videos of one length, and name it by --frames"
            raise InputError("videos", video, remedy, problem=f"has {length} frames, not {frames}")
    # whatever is in it would be scored, too
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clips = [clip for video in found for clip in cut_clips(video, folder)]
    if not clips:
        problem = f"has no video of {CLIP} frames"
        raise InputError("videos", videos, "make longer ones", problem=problem)
    return clips


@dataclass(frozen=True)
class Scored:
    """scores: VBench's, 0 to 1, by dimension. failed: why there is none, by dimension. clips: how many were scored."""

    scores: Mapping[str, float]
    failed: Mapping[str, str]
    clips: int


def score(
    videos: Path, folder: Path, *, frames: int, dimensions: Sequence[str], device: str, python: str
) -> Scored:
    """Return VBench's scores of the clips of all videos of a folder. python: that of the environment with the package.

    The package is called as its own evaluate.py does: prompts play no part in these dimensions. Raises InputError
    without the package, what its dimensions need, or videos, before anything is scored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    call_package(python, folder, device, dimensions)
    clips = make_clips(videos, folder / "clips", frames=frames)
    for dimension in dimensions:
        result_file(folder, dimension).unlink(missing_ok=True)
    failed = call_package(python, folder, device, dimensions, clips=folder / "clips")
    scores = {}
    for dimension in dimensions:
        try:
            if dimension not in failed:
                scores[dimension] = read_result(result_file(folder, dimension), dimension, clips=len(clips))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            failed[dimension] = f"{result_file(folder, dimension)} has no score ({error!r})"
    return Scored(scores, failed, len(clips))


def call_package(
    python: str, folder: Path, device: str, dimensions: Sequence[str], *, clips: Path | None = None
) -> dict[str, str]:
    """Run vbench_call.py: what failed, by dimension. Without clips, it only checks. Raises InputError."""
    guide = "see docs/guides/vbench.md"
    if shutil.which(python) is None:
        remedy = f"name the Python of the environment with vbench; {guide}"
        raise InputError("--python", python, remedy, problem="is not a program")
    outcome = folder / "outcome.json"
    outcome.unlink(missing_ok=True)
    script = str(Path(__file__).with_name("vbench_call.py"))
    options = [] if clips is None else ["--clips", str(clips)]
    ended = subprocess.run([python, script, str(outcome), device, *dimensions, *options], check=False)
    try:
        result = json.loads(outcome.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        problem = f"ended with exit code {ended.returncode}"
        raise InputError("vbench", python, "see what it printed", problem=problem) from None
    if result["refused"] is not None:
        reasons = result["refused"]
        remedy = f"{reasons['remedy']}; {guide}"
        raise InputError(reasons["field"], reasons["value"], remedy, problem=reasons["problem"])
    return {name: one_line(text)[:LONGEST_REASON] for name, text in result["failed"].items()}


def result_file(folder: Path, dimension: str) -> Path:
    """Return the file to which the package writes the result of a dimension."""
    return folder / f"{dimension}_eval_results.json"


def read_result(file: Path, dimension: str, *, clips: int) -> float:
    """Return a score in a file that the package wrote, `{DIMENSION: [score, [a score per clip]]}`.

    Raises ValueError if it is not of all clips: the package passes over those that it cannot read.
    """
    value, each = json.loads(file.read_text(encoding="utf-8"))[dimension]
    if len(each) != clips:
        raise ValueError(f"{len(each)} of {clips} clips were scored")
    if not math.isfinite(value):
        raise ValueError(f"the score is {value}")
    return as_share(dimension, float(value))


def as_share(dimension: str, value: float) -> float:
    """Return a score as VBench's result file has it, on 0 to 1: older versions give imaging quality in percent."""
    return value / 100 if dimension == "imaging_quality" and value > 1 else float(value)


def table(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the paper's table 2 with our lines in it, as Markdown. scores: of ours by the number of frames, 0 to 1."""
    lines = [f"| method | frames | {' | '.join(DIMENSIONS.values())} |", "|---" * (len(DIMENSIONS) + 2) + "|"]
    for length in LENGTHS:
        for (method, frames), values in PAPER.items():
            if frames == length:
                lines.append(_line(method, frames, [f"{value:.2f}" for value in values]))
        own = scores.get(str(length), {})
        cells = [f"{own[name] * 100:.2f}" if name in own else "not run" for name in DIMENSIONS]
        lines.append(_line(f"**{OURS}**", length, cells))
    return lines


def _line(method: str, frames: int, cells: Sequence[str]) -> str:
    return f"| {method} | {frames} | {' | '.join(cells)} |"


def read_scores(path: Path) -> dict[str, Any]:
    """Scores by the number of frames; none without the file. Raises InputError if it cannot be read."""
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(scores, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            "scores", path, "delete it, and score again", problem=f"cannot be read ({error})"
        ) from None
    return scores


def score_and_keep(options: argparse.Namespace) -> None:
    """`score`: add what was scored to the file of scores. Raises InputError if a dimension failed."""
    kept = read_scores(options.scores)
    length = str(options.frames)
    scored = score(
        options.videos,
        options.scores.parent / f"vbench-{length}",
        frames=options.frames,
        dimensions=options.dimensions,
        device=options.device,
        python=options.python,
    )
    # an earlier score of a dimension that failed now may be that of other videos
    others = {name: value for name, value in kept.get(length, {}).items() if name not in options.dimensions}
    kept[length] = {**others, **scored.scores}
    write_whole(options.scores, to_json(kept, indent=2) + "\n")
    for name, value in scored.scores.items():
        print(f"{name}: {value:.4f}, the mean of {scored.clips} clip{'s' * (scored.clips != 1)}")
    for name, reason in scored.failed.items():
        print(f"{name}: not scored ({reason})", file=sys.stderr)
    if scored.failed:
        remedy = "see what vbench printed, and repeat these with --dimensions"
        raise InputError("dimensions", ", ".join(scored.failed), remedy, problem="could not be scored")


def main(arguments: Sequence[str] | None = None) -> None:
    """Return the command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prompts = commands.add_parser("prompts", help="write the rows of a batch")
    prompts.add_argument("file", type=Path, help="VBench's all_dimension.txt or VBench_full_info.json")
    prompts.add_argument("--samples", type=int, default=5, help="videos per prompt [%(default)s]")
    prompts.add_argument("--out", type=Path, required=True, help="file of rows to write, .jsonl")
    scored = commands.add_parser("score", help="score a folder of videos with the package vbench")
    scored.add_argument("videos", type=Path)
    scored.add_argument("--frames", type=int, required=True, help="length of the videos")
    scored.add_argument(
        "--dimensions",
        nargs="+",
        choices=list(DIMENSIONS),
        default=list(DIMENSIONS),
        metavar="NAME",
        help=f"what to score: {', '.join(DIMENSIONS)} [all]",
    )
    scored.add_argument("--device", default="cuda", help="[%(default)s]")
    scored.add_argument(
        "--python", default=sys.executable, help="Python of the environment with vbench [this one]"
    )
    printed = commands.add_parser("table", help="print our scores next to the paper's table 2")
    for command in (scored, printed):
        command.add_argument("--scores", type=Path, default=SCORES, help="[%(default)s]")
    options = parser.parse_args(arguments)
    try:
        if options.command == "prompts":
            found = list(rows(read_prompts(options.file), options.samples))
            write_whole(options.out, "".join(to_json(row) + "\n" for row in found))
            print(f"{options.out}: {len(found)} videos")
        elif options.command == "score":
            score_and_keep(options)
        else:
            print("\n".join(table(read_scores(options.scores))))
    except VinfinityError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
