"""The job script for SLURM arrays, with stand-ins for the commands of SLURM: its jobs share the videos exactly."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "array.sbatch"


def command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_jobs_of_an_array_share_a_batch(model_folder: Path, tmp_path: Path) -> None:
    commands, videos = tmp_path / "bin", tmp_path / "videos"
    commands.mkdir()
    command(commands, "srun", 'shift; exec "$@"')
    command(commands, "vinfinity", f'exec {sys.executable} -m vinfinity "$@"')
    (tmp_path / "prompts.txt").write_text("a red ball\na blue boat\na green star\n")
    settings = ["frames=2", "size=32x32", "steps=1", "device=cpu", f"model={model_folder}"]
    made = []
    for job in (4, 5):
        environment = {
            **os.environ,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "SLURM_ARRAY_TASK_ID": str(job),
            "SLURM_ARRAY_TASK_MIN": "4",
            "SLURM_ARRAY_TASK_COUNT": "2",
        }
        words = ["bash", str(SCRIPT), str(tmp_path / "prompts.txt"), "--folder", str(videos), *settings]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = (videos / f"prompts-{job - 3}-of-2.batch.jsonl").read_text().splitlines()
        made.append([json.loads(line)["video"] for line in lines])
    assert made == [["0001-a-red-ball-0.mp4", "0003-a-green-star-0.mp4"], ["0002-a-blue-boat-0.mp4"]]
