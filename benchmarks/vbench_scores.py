"""VBench's prompts as videos, their scores, and a table beside the paper's.

    python benchmarks/vbench_scores.py prompts all_dimension.txt --out vbench.jsonl --samples 5
    vinfinity batch vbench.jsonl --folder build/vbench/192 --frames 192 --out "{prompt}-{sample}.mp4" ...
    python benchmarks/vbench_scores.py score build/vbench/192 --frames 192
    python benchmarks/vbench_scores.py table

`prompts` writes a row per prompt and sample for `vinfinity batch`, with seeds of its own. `score` needs the package
`vbench` (0.1.2 or newer), its weights and a GPU: it cuts videos into clips of 16 frames, as the paper does, and adds
the means to build/vbench/scores.json. `table` needs nothing; what was not scored is "not run".
"""

import argparse
import inspect
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vinfinity.config import VideoConfig, choose_format
from vinfinity.errors import InputError, VinfinityError, one_line
from vinfinity.media.reader import open_reader
from vinfinity.media.writer import VideoWriter
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


def rows(prompts: Sequence[str], samples: int) -> Iterator[dict[str, object]]:
    """A row of a batch for each sample of each prompt: VBench's names tell them apart by {sample}."""
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
    """Consecutive clips of 16 frames of a video, nearly lossless; what is left at its end is left out."""
    reader = open_reader(video)
    clips: list[Path] = []
    width, height = reader.size
    waiting: list[np.ndarray] = []
    for frame in reader:
        waiting.append(frame)
        if len(waiting) == CLIP:
            path = folder / f"{video.stem}-clip{len(clips):04d}.mp4"
            config = VideoConfig(crf=4)
            with VideoWriter(
                path, choose_format(None, config), width=width, height=height, fps=reader.fps, metadata={}
            ) as writer:
                for one in waiting:
                    writer.write(one)
            clips.append(path)
            waiting = []
    return clips


def import_vbench(device: str) -> Any:
    """The package vbench, from version 0.1.2 on. Raises InputError if it or a GPU is missing."""
    guide = "see docs/guides/vbench.md"
    try:
        import vbench
    except ImportError as error:
        if error.name == "vbench":
            remedy = f"pip install vbench, on a machine with a GPU; {guide}"
            raise InputError(
                "package", "vbench", remedy, problem="is needed for scores, and not installed"
            ) from None
        remedy = f"install what it needs; {guide}"
        raise InputError(
            "package", "vbench", remedy, problem=f"cannot be imported ({one_line(error)})"
        ) from None
    if "mode" not in inspect.signature(vbench.VBench.evaluate).parameters:
        problem = "is older than 0.1.2, which has no mode for custom input"
        raise InputError("package", "vbench", "pip install --upgrade vbench", problem=problem)
    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", device, f"use a machine with a GPU; {guide}", problem="is not there")
    return vbench


def make_clips(videos: Path, folder: Path) -> Path:
    """The folder with the clips of all videos of a folder, made anew. Raises InputError if there are none."""
    found = sorted(videos.glob("*.mp4"))
    if not found:
        raise InputError("videos", videos, "make them with `vinfinity batch`", problem="has no .mp4 files")
    clips = folder / "clips"
    # whatever is in it would be scored, too
    shutil.rmtree(clips, ignore_errors=True)
    clips.mkdir(parents=True)
    if not sum(len(cut_clips(video, clips)) for video in found):
        problem = f"has no video of {CLIP} frames"
        raise InputError("videos", videos, "make longer ones", problem=problem)
    return clips


def score(videos: Path, folder: Path, *, device: str) -> dict[str, float]:
    """VBench's scores of the clips of all videos of a folder, 0 to 1.

    As in the package's own evaluate.py, with its defaults: prompts play no part in these dimensions. Raises InputError
    without the package, videos or a dimension's score.
    """
    vbench = import_vbench(device)
    clips = make_clips(videos, folder)
    info = Path(vbench.__file__).parent / "VBench_full_info.json"
    # a device, not its name: to motion smoothness, they are different
    bench = vbench.VBench(torch.device(device), str(info), str(folder))
    bench.evaluate(
        videos_path=str(clips),
        name="scores",
        dimension_list=list(DIMENSIONS),
        local=False,
        read_frame=False,
        mode="custom_input",
    )
    written = folder / "scores_eval_results.json"
    try:
        results = json.loads(written.read_text(encoding="utf-8"))
        return {name: as_share(name, float(results[name][0])) for name in DIMENSIONS}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        remedy = "see what vbench printed, and score again"
        raise InputError("vbench", written, remedy, problem=f"has no scores ({error!r})") from None


def as_share(dimension: str, value: float) -> float:
    """A score as VBench's result file has it, on 0 to 1: older versions give imaging quality in percent."""
    return value / 100 if dimension == "imaging_quality" and value > 1 else float(value)


def table(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The paper's table 2 with our lines in it, as Markdown. scores: of ours by the number of frames, 0 to 1."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this script."""
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
    scored.add_argument("--device", default="cuda", help="[%(default)s]")
    printed = commands.add_parser("table", help="print our scores beside the paper's table 2")
    for command in (scored, printed):
        command.add_argument("--scores", type=Path, default=SCORES, help="[%(default)s]")
    options = parser.parse_args(arguments)
    try:
        if options.command == "prompts":
            found = list(rows(read_prompts(options.file), options.samples))
            write_whole(options.out, "".join(to_json(row) + "\n" for row in found))
            print(f"{options.out}: {len(found)} videos")
        elif options.command == "score":
            scores = read_scores(options.scores)
            folder = options.scores.parent / f"vbench-{options.frames}"
            scores[str(options.frames)] = score(options.videos, folder, device=options.device)
            write_whole(options.scores, to_json(scores, indent=2) + "\n")
        else:
            print("\n".join(table(read_scores(options.scores))))
    except VinfinityError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
