"""Stories of two prompts are made with settings of the study and read for the prompt of their time."""

import csv
from pathlib import Path

import pytest
import stories


def test_a_story_is_made_with_each_setting_and_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stories.csv"
    small = ["--stories", "1", "--frames", "48", "--steps", "1", "--out", str(out)]
    stories.main([*small, "--settings", "dual", "unbiased"])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["dual", "unbiased"]
    assert all(0 <= float(row["right"]) <= 1 and 0 <= float(row["steady"]) <= 1 for row in rows)
    assert rows[0]["first"] != rows[0]["second"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("unbiased: right ")


def test_stories_shorter_than_three_clips_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stories.main(["--frames", "47"])
    assert "--frames: 47 is shorter than three clips; give at least 48" in capsys.readouterr().err
