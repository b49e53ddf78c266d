"""Looks at the machine fail in one line: they neither raise nor hang, whatever happens to them."""

import functools
import os
import sys
import time

import pytest

from vinfinity.machine.probe import Failed, ProbeError, attempt, in_child, plain, run_tool


def test_what_was_found_comes_back_from_a_process_of_its_own() -> None:
    assert in_child(functools.partial(divmod, 17, 5)) == (3, 2)
    assert in_child(os.getpid) != os.getpid()


def test_what_libraries_print_does_not_disturb_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert in_child(functools.partial(print, "loading...", end="")) is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (functools.partial(int, "x"), "ValueError: invalid literal"),
        (functools.partial(sys.exit, 3), "SystemExit: 3"),
        (os.abort, "the process was killed by SIGABRT"),
        (functools.partial(os._exit, 3), "the process ended with exit code 3"),
    ],
    ids=["raises", "exits", "crashes", "vanishes"],
)
def test_a_look_that_fails_is_named(probe: functools.partial[object], reason: str) -> None:
    found = attempt(in_child, probe)
    assert isinstance(found, Failed)
    assert reason in found.reason
    assert "\n" not in found.reason


def test_a_look_that_hangs_is_given_up() -> None:
    with pytest.raises(ProbeError, match=r"did not answer within 0\.5 s"):
        in_child(functools.partial(time.sleep, 600), seconds=0.5)


def test_a_tool_that_fails_says_why() -> None:
    with pytest.raises(ProbeError, match=r"^sh: broken$"):
        run_tool(["sh", "-c", "echo; echo broken; exit 9"])
    with pytest.raises(ProbeError, match=r"^sh: ended with exit code 9$"):
        run_tool(["sh", "-c", "exit 9"])
    assert isinstance(attempt(run_tool, ["no-such-tool"]), Failed)


def test_a_reason_is_one_line_of_bounded_length() -> None:
    found = attempt(in_child, functools.partial(int, "x\n" * 1000))
    assert isinstance(found, Failed)
    assert len(found.reason) <= 240
    assert "\n" not in found.reason


def test_a_failure_is_plain_to_programs() -> None:
    assert plain({"a": (Failed("why"), 1)}) == {"a": [{"failed": "why"}, 1]}
