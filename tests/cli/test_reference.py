"""The reference pages in docs/ are those that the code describes."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_reference_pages_are_up_to_date() -> None:
    command = [sys.executable, "scripts/reference.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, ""), "run python scripts/reference.py"


def test_a_stale_page_is_named(tmp_path: Path) -> None:
    """The pages are looked for beside the script: a copy of it elsewhere finds none."""
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "reference.py"
    script.write_bytes((REPOSITORY / "scripts" / "reference.py").read_bytes())
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1
    for page in ("cli", "settings", "exit-codes"):
        assert f"docs/reference/{page}.md" in done.stderr
    assert not (tmp_path / "docs").exists()
    subprocess.run([sys.executable, script], check=True, cwd=REPOSITORY)
    assert "--frames" in (tmp_path / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
