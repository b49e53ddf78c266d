"""`--help` of every command: nothing that is declared gets lost on the way to the screen."""

from pathlib import Path
from typing import Any

import pytest
from oracles.command_line import Cli
from typer.main import get_command

from vinfinity.cli.app import app
from vinfinity.config import declared


def commands() -> dict[str, Any]:
    """Every command by the words that call it."""
    program: Any = get_command(app)
    found: dict[str, Any] = {}
    for name, command in program.commands.items():
        below = getattr(command, "commands", None)
        found |= {f"{name} {sub}": c for sub, c in below.items()} if below else {name: command}
    return found


COMMANDS = commands()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_paragraphs_flow_to_the_width_of_the_screen(name: str) -> None:
    assert all("\n" not in paragraph for paragraph in COMMANDS[name].help.split("\n\n"))


# what `--help` shows in place of a number
NUMBERS = ("N", "X", "GB", "MiB")


def test_every_option_that_is_a_number_is_decimal(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    files = {"batch": [str(tmp_path / "prompts.txt")]}
    # without the commands that look for a run first
    asked = [
        (name, option)
        for name, command in COMMANDS.items()
        for option in command.params
        if getattr(option, "metavar", None) in NUMBERS and command.params[0].name != "run"
    ]
    assert len(asked) >= 30
    for name, option in asked:
        for number in ("010", "1:30", "1_000", "１２"):
            message = cli.refused(*name.split(), *files.get(name, []), option.opts[0], number)
            assert number in message
            assert option.opts[0] in message


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return a terminal on which no line is wrapped."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("NO_COLOR", "1")


def shown(cli: Cli, name: str) -> dict[str, str]:
    """Return the line of `--help` for each option and argument of a command, by its first word."""
    code, out, _ = cli(*name.split(), "--help")
    assert code == 0
    lines = [line.strip("│ ").removeprefix("*").strip() for line in out.splitlines() if line.startswith("│")]
    return {line.split()[0]: line for line in lines if line}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_and_every_default_is_shown(cli: Cli, name: str) -> None:
    lines = shown(cli, name)
    for parameter in COMMANDS[name].params:
        is_argument = parameter.param_type_name == "argument"
        line = lines[(parameter.metavar or parameter.name.upper()) if is_argument else parameter.opts[0]]
        assert " ".join(parameter.help.split()) in line
        if isinstance(parameter.show_default, str):
            assert line.endswith(f"[default: ({parameter.show_default})]")
        elif parameter.required:
            assert line.endswith("[required]")
        elif parameter.default is not None and not parameter.is_flag:
            assert line.endswith(f"[default: {parameter.default}]")
        else:
            # a switch is off by default
            assert is_argument or parameter.is_flag or parameter.show_default is False


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", ["generate", "plan", "config"])
def test_the_options_of_a_run_are_those_declared(cli: Cli, name: str) -> None:
    lines = shown(cli, name)
    with_flag = [setting for setting in declared().values() if setting.setting.panel is not None]
    assert len(with_flag) == 32
    for setting in with_flag:
        line = lines[str(setting.flag)]
        assert setting.setting.help in line
        assert (setting.setting.short or "") in line
        if setting.kind is not bool:
            assert line.endswith(f"[default: ({setting.default_text})]")
        for choice in setting.choices:
            assert choice in line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_is_a_sentence(name: str) -> None:
    assert COMMANDS[name].help.strip()
    for parameter in COMMANDS[name].params:
        text = parameter.help.strip()
        assert text[0].isupper(), parameter.name
        assert text.endswith("."), parameter.name
        # a lower-case word in brackets would be taken as markup, and vanish
        assert "[" not in text, parameter.name
