"""The progress of several videos in one line: on a terminal, in a log, and on ranks other than 0."""

import io
from pathlib import Path

from rich.console import Console

from vinfinity.system.overall import Overall
from vinfinity.system.progress import Progress, messages_shown


def shown(*, terminal: bool, enabled: bool = True, log: Path | None = None) -> str:
    text = io.StringIO()
    out = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    with (
        messages_shown(out),
        Overall([1.0, 3.0], total=5, failed=1, enabled=enabled, interval=0.0) as overall,
    ):
        for video in range(2):
            overall.begin()
            with Progress(overall=overall, enabled=enabled, log=log) as progress:
                progress.warn("the same for all")
                list(progress.track(range(2), label="denoising"))
                list(progress.track(range(4), label="decoding", unit="frame"))
            overall.end(failed=video == 0)
    return text.getvalue()


def test_a_log_has_one_kind_of_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    lines = shown(terminal=False, log=log).splitlines()
    assert lines[:2] == ["video 4 of 5 (1 failed): starting", "warning: the same for all"]
    assert lines[2].startswith("video 4 of 5 (1 failed): denoising, 1 of 2 steps, ")
    assert lines[2].endswith(" left")
    assert [line for line in lines if "warning" in line] == ["warning: the same for all"]
    assert lines[-1].startswith("video 5 of 5 (2 failed): decoding, 4 of 4 frames, ")
    # the run's own log has everything
    assert [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()] == [
        "warning: the same for all",
        "denoising: done",
        "decoding: done",
    ] * 2


def test_a_terminal_has_one_bar_for_all() -> None:
    text = shown(terminal=True)
    assert "video 5 of 5 (2 failed): decoding" in text
    assert text.rstrip().count("\n") <= 3


def test_other_ranks_show_nothing() -> None:
    assert shown(terminal=True, enabled=False) == ""
    assert shown(terminal=False, enabled=False) == ""


def test_time_left_follows_the_work_not_the_number_of_videos() -> None:
    overall = Overall([1.0, 3.0], total=2, enabled=False)
    assert "left" not in overall.line("starting")
    overall._started -= 10
    overall.end()
    assert overall.line("starting") == "video 2 of 2: starting, 30 s left"
    overall.show("denoising", 1, 2, unit="step")
    assert overall.line("x") == "video 2 of 2: x, 6.0 s left"


def test_time_left_counts_the_first_of_two_passes_as_its_part_of_the_work(tmp_path: Path) -> None:
    overall = Overall([4.0], total=1, enabled=False)
    overall._started -= 10
    progress = Progress(overall=overall, share=(0.5, 1.0))
    first = progress.of_part("first pass", log=tmp_path / "log.txt")
    for current, label, line in (
        (first, "denoising", "10 s left"),
        (first, "decoding", "10 s left"),
        (progress, "encoding", "10 s left"),
        (progress, "denoising", "0.0 s left"),
    ):
        list(current.track(range(2), label=label))
        assert overall.line("x") == f"video 1 of 1: x, {line}"
    assert (tmp_path / "log.txt").read_text().count("first pass: d") == 2
