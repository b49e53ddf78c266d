"""run.json: what a run was, where it ran and what it took, in the run's folder beside the video."""

import json
from collections.abc import Mapping
from pathlib import Path


def run_folder(video: Path) -> Path:
    """The folder of the run that makes `video`: NAME.run beside NAME.mp4."""
    return video.with_suffix(".run")


def write_record(video: Path, record: Mapping[str, object]) -> Path:
    """Writes run.json, whole or not at all, and returns its path."""
    folder = run_folder(video)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path
