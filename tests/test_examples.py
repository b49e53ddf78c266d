"""The examples run unchanged, each in a separate process and an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PROGRAMS = sorted((REPOSITORY / "examples" / "python").glob("*.py"))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_example_runs(program: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    # the library prints nothing
    assert done.stderr == ""


def test_examples_are_short() -> None:
    for program in PROGRAMS:
        lines = [line for line in program.read_text().splitlines() if line.strip()]
        assert len(lines) <= 14, program


def test_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(REPOSITORY / "examples" / "notebooks" / "first-video.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<video" in output.get("data", {}).get("text/html", "") for output in shown)
    assert (tmp_path / "boat.mp4").is_file()
