"""The command line, run in the process of the test."""

import pytest

from vinfinity.cli import main


class Cli:
    """Runs the command line in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of `vinfinity ARGUMENTS`."""
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        message = self._capture.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, message.out, message.err

    def refused(self, *arguments: str, code: int = 2) -> str:
        """Return the one line that a refused command prints, without `error: `."""
        got, out, err = self(*arguments)
        assert (got, out) == (code, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").rstrip()
