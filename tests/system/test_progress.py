"""Messages and progress: on a terminal, in a log, as a library, and on ranks other than 0."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from vinfinity.system.progress import Progress, duration, fail, logger, messages_shown, note, warn


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=100, color_system=None), text


def generator(count: int) -> Iterator[int]:
    yield from range(count)


def test_a_log_has_a_line_per_interval() -> None:
    out, text = console(terminal=False)
    with messages_shown(out), Progress(interval=0.0) as progress:
        assert list(progress.track(generator(3), total=3, label="denoising", unit="step")) == [0, 1, 2]
    lines = text.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == [
        "denoising: 1 of 3 steps",
        "denoising: 2 of 3 steps",
    ]
    assert all(line.endswith(" left") for line in lines[:2])
    assert lines[2].startswith("denoising: 3 steps in ")
    assert len(lines) == 3


def test_a_short_loop_logs_its_last_line_only() -> None:
    out, text = console(terminal=False)
    with messages_shown(out), Progress() as progress:
        list(progress.track([1], label="decoding", unit="frame"))
        list(progress.track(generator(2), label="counting", unit="thing"))
    lines = text.getvalue().splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["decoding: 1 frame", "counting: 2 things"]


def test_a_terminal_has_a_bar() -> None:
    out, text = console(terminal=True)
    with messages_shown(out), Progress() as progress:
        for _ in progress.track(range(4), label="denoising [red][/b]:fire:", unit="step"):
            progress.note("a note")
    shown = text.getvalue()
    # names of files are no markup
    assert "denoising [red][/b]:fire:" in shown
    assert "4/4" in shown
    assert "steps" in shown
    assert "a note" in shown


def test_other_ranks_are_silent() -> None:
    out, text = console(terminal=True)
    with messages_shown(out), Progress(enabled=False) as progress:
        assert list(progress.track(range(3), label="denoising")) == [0, 1, 2]
        progress.warn("nothing")
        progress.note("nothing")
    assert text.getvalue() == ""


def test_an_unfinished_loop_logs_no_result() -> None:
    out, text = console(terminal=False)
    with messages_shown(out), Progress() as progress:
        for item in progress.track(range(5), label="denoising"):
            if item == 2:
                break
    assert text.getvalue() == ""


def test_a_library_logs_and_prints_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.INFO, logger="vinfinity"), Progress(log=tmp_path / "log.txt") as progress:
        list(progress.track(range(3), label="denoising"))
        progress.warn("look out")
    assert capfd.readouterr() == ("", "")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1].split(" in ")[0] for line in lines] == [
        "denoising: 3 steps",
        "warning: look out",
    ]


def test_messages_are_shown_once_and_only_inside_the_block() -> None:
    out, text = console(terminal=False)
    with messages_shown(out), messages_shown():
        logger.warning("careful")
    logger.warning("nobody sees this")
    assert text.getvalue() == "warning: careful\n"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("closed file")], ids=str
)
def test_a_stderr_that_cannot_be_written_loses_only_the_message(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr("sys.stderr", Full())
    with messages_shown(), Progress(interval=0.0) as progress:
        assert list(progress.track(range(2), label="denoising")) == [0, 1]
        progress.note("a note")
    fail("an error")


def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr("sys.stderr", stream)
    note("a red ball 🎈")
    stream.flush()
    assert written.getvalue() == b"a red ball ?\n"


def test_messages_appear_on_stderr_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    warn("a [red] ball " + "x" * 200)
    note("[1] of 2")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "warning: a [red] ball " + "x" * 200 + "\n[1] of 2\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (187, "3 min 07 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_time_spans(seconds: float, text: str) -> None:
    assert duration(seconds) == text
