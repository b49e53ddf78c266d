"""Stages end at the first figure out of its limits, and all figures are written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vinfinity.bench.stages import (
    Figure,
    Report,
    Skipped,
    Stage,
    at_least,
    at_most,
    equals,
    figure,
    run_stages,
    says,
)
from vinfinity.errors import InputError


def good(limit: float) -> Iterator[Figure]:
    yield figure("seen", 3, "frames")
    yield at_most("error", 0.5, limit)


def bad(limit: float) -> Iterator[Figure]:
    yield at_least("rate", 0.25, limit, "GB/s")
    raise AssertionError("went on after a failure")


def absent(limit: float) -> Iterator[Figure]:
    raise Skipped("needs two GPUs")
    yield


def refused(limit: float) -> Iterator[Figure]:
    raise InputError("gpus", 9, "use fewer", problem="is more than there are")
    yield


def broken(limit: float) -> Iterator[Figure]:
    raise KeyError("missing")
    yield


GOOD, BAD = Stage("good", "errors at most 1", good), Stage("bad", "rates at least 1", bad)
ABSENT = Stage("absent", "two GPUs agree", absent)


def run(*stages: Stage[float], out: Path | None = None, keep_going: bool = False) -> Report:
    settings, machine = {"quick": True}, {"host": "n0"}
    return run_stages(
        stages, 1.0, title="test", settings=settings, machine=machine, out=out, keep_going=keep_going
    )


def test_every_figure_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(GOOD, ABSENT, out=tmp_path / "folder" / "figures.json")
    assert not report.failed
    printed = capsys.readouterr().out
    assert "good: errors at most 1\n  seen: 3 frames\n  error: 0.5  [<= 1: ok]\n  passed" in printed
    assert "absent: two GPUs agree\n  skipped: needs two GPUs" in printed
    assert "test: 1 passed, 1 skipped\n" in printed
    found: dict[str, Any] = json.loads((tmp_path / "folder" / "figures.json").read_text(encoding="utf-8"))
    assert (found["title"], found["outcome"], found["machine"]) == ("test", "passed", {"host": "n0"})
    assert found["settings"] == {"quick": True}
    first, second = found["stages"]
    assert first["figures"][1] == {
        "name": "error",
        "value": 0.5,
        "unit": "",
        "accepts": "<= 1",
        "passed": True,
    }
    assert (second["outcome"], second["why"]) == ("skipped", "needs two GPUs")


def test_the_first_failure_ends_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(GOOD, BAD, GOOD, GOOD, out=tmp_path / "figures.json")
    assert report.failed
    assert [done.outcome for done in report.stages] == ["passed", "failed"]
    assert report.stages[1].why == "rate is not >= 1"
    printed = capsys.readouterr().out
    assert "rate: 0.25 GB/s  [>= 1: FAILED]" in printed
    assert "test: 1 passed, 1 failed, 2 not reached" in printed
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["outcome"] == "failed"


def test_all_can_be_carried_out_in_spite_of_failures() -> None:
    report = run(BAD, GOOD, keep_going=True)
    assert [done.outcome for done in report.stages] == ["failed", "passed"]
    assert report.failed


def test_all_figures_of_a_stage_can_be_measured_in_spite_of_failures() -> None:
    def work(_: float) -> Iterator[Figure]:
        yield at_least("rate", 0.25, 1.0, "GB/s")
        yield at_most("error", 0.5, 1.0)
        yield at_most("drift", 3.0, 1.0)

    stage = Stage("mixed", "everything is well", work)
    [done] = run(stage, keep_going=True).stages
    assert [found.name for found in done.figures] == ["rate", "error", "drift"]
    assert (done.outcome, done.why) == ("failed", "rate is not >= 1")
    [done] = run(stage).stages
    assert [found.name for found in done.figures] == ["rate"]


@pytest.mark.parametrize(
    ("work", "why"), [(refused, "gpus: 9 is more than there are; use fewer"), (broken, "KeyError: 'missing'")]
)
def test_errors_are_failures(work: Any, why: str) -> None:
    [done] = run(Stage("odd", "nothing", work)).stages
    assert (done.outcome, done.why) == ("failed", why)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_passes_no_limit(value: float) -> None:
    assert at_most("error", value, 1.0).passed is False


def test_values_and_words_are_compared() -> None:
    assert equals("exit code", 75, 75).passed
    assert not equals("exit code", 1, 75).passed
    assert says("message", "rank 1 is\ngone", "rank 1").passed
    assert not says("message", "rank 0 is gone", "rank 1").passed
    assert says("message", "rank 1 is\ngone", "rank 1").value == "rank 1 is gone"
