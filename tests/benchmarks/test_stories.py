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
    assert capsys.readouterr().out.splitlines()[-1].endswith(" in 1 videos of unbiased")


def test_settings_are_compared_by_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        stories.Story(setting=setting, seed=seed, first="a", second="b", right=1.0, steady=steady)
        for seed in range(8)
        for setting, steady in (("dual", 0.5 + 0.05 * seed), ("unbiased", 0.4 + 0.05 * seed))
    ]
    stories.print_summary(found, ["dual", "unbiased"])
    assert capsys.readouterr().out.splitlines() == [
        "right 1.000 in 8 videos of dual",
        "right 1.000 in 8 videos of unbiased, +0.000 (+0.000 to +0.000, p = 1.00) from dual",
        "steady 0.675 in 8 videos of dual",
        "steady 0.575 in 8 videos of unbiased, -0.100 (-0.100 to -0.100, p = 0.01) from dual",
    ]


def test_stories_shorter_than_three_clips_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stories.main(["--frames", "47"])
    assert "--frames: 47 is shorter than three clips; give at least 48" in capsys.readouterr().err
