"""Commands, settings and files that the documentation names exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from vinfinity.cli.app import app
from vinfinity.config import declared

ROOT = Path(__file__).parents[2]
# the changelog and the log name things as they were
PAGES = [
    page
    for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if page.name != "CHANGELOG.md" and page.parent.name not in ("log", "reference")
]
FOLDERS = ("benchmarks", "configs", "docs", "examples", "scripts", "tests", "training", "vinfinity")


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `vinfinity` of each command in the shell blocks of a page."""
    for block in re.findall(
        r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    ):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if "vinfinity" in words:
                yield words[words.index("vinfinity") + 1 :]


def unknown_words(words: list[str]) -> list[str]:
    """The words of a command that are no command, option or setting of vinfinity."""
    command = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        inner = command.commands.get(words[0])
        if inner is None:
            return words[:1]
        command, words = inner, words[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options |= {"--help"}
    settings = [word.partition("=")[0] for word in words if re.fullmatch(r"[a-z_.]+=.*", word)]
    return [word for word in words if word.startswith("-") and word not in options] + [
        key for key in settings if key not in declared()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_use_known_options_and_settings(page: Path) -> None:
    assert [(words, unknown_words(words)) for words in commands(page) if unknown_words(words)] == []


def test_the_readme_shows_commands() -> None:
    assert len(list(commands(ROOT / "README.md"))) >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_and_files_named_on_a_page_exist(page: Path) -> None:
    groups = {key.partition(".")[0] for key in declared() if "." in key}
    unknown = []
    for code in re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    ):
        setting = re.fullmatch(r"([a-z_]+)\.([a-z_]+)(=\S*|: .*)?", code)
        if setting and setting[1] in groups and f"{setting[1]}.{setting[2]}" not in declared():
            unknown.append(code)
        if (
            code.partition("/")[0] in FOLDERS
            and re.fullmatch(r"[\w./-]+", code)
            and not (ROOT / code).exists()
        ):
            unknown.append(code)
    assert unknown == []
