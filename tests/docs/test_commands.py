"""The commands of the README run; commands, settings and files that the documentation names exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from oracles.command_line import Cli
from oracles.video import read_video

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


# settings that make the videos of `generate` small: an option would be given twice
SMALL = ["steps=1", "size=32x32"]


def lines(page: Path) -> Iterator[list[str]]:
    """Yield the words of each line in the shell blocks of a page, without comments."""
    for block in re.findall(
        r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    ):
        for line in block.splitlines():
            yield shlex.split(line, comments=True)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words after `vinfinity` of each command in the shell blocks of a page."""
    for words in lines(page):
        if "vinfinity" in words:
            yield words[words.index("vinfinity") + 1 :]


def runs_here(words: list[str]) -> bool:
    """Whether a line can be run by anyone: it needs no download, no weights and no launcher."""
    return words[:1] == ["vinfinity"] and "fetch" not in words and "--model" not in words


def unknown_words(words: list[str]) -> list[str]:
    """Return the words of a command that are no command, option or setting of vinfinity."""
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


def test_the_commands_of_the_readme_run_in_their_order(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names = []
    for _, name, *arguments in filter(runs_here, lines(ROOT / "README.md")):
        code, _, err = cli(name, *arguments, *(SMALL if name == "generate" else []))
        assert code == 0, f"vinfinity {name} {shlex.join(arguments)}: {err}"
        names.append(name)
    assert names == [
        "generate",
        "generate",
        "plan",
        "doctor",
        "resume",
        "generate",
        "redo",
        "extend",
        "decode",
        "evaluate",
    ]
    assert (tmp_path / "ball.gif").exists()
    frames = {path.name: len(read_video(path)) for path in tmp_path.glob("ball*.mp4")}
    assert frames == {"ball.mp4": 64, "ball-redo.mp4": 64, "ball-extend.mp4": 64 + 48}


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
