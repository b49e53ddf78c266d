"""Settings written to YAML are read back unchanged, whatever their text."""

import random
import sys
from pathlib import Path

import pytest
from oracles.settings import run_config

from vinfinity.config import leaves, load, to_yaml
from vinfinity.config.yaml import read_yaml, write_yaml
from vinfinity.errors import InputError

SURROGATES = range(0xD800, 0xE000)
# lone code points that are most likely to be lost or to change others
UNUSUAL = [chr(code) for code in range(1, 0x10000) if code not in SURROGATES and not chr(code).isalnum()]
LINES = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
# what YAML, OmegaConf or Python might take for something else
MEANINGFUL = [
    "010",
    "1:30",
    "1_000",
    "0x1F",
    "0o17",
    "1e3",
    ".5",
    ".inf",
    ".nan",
    "-",
    "~",
    "null",
    "Null",
    "true",
    "no",
]
MEANINGFUL += [
    "on",
    "y",
    "2024-01-01",
    "12:30:45",
    "=",
    "<<",
    "???",
    "---",
    "...",
    "- a",
    "? a",
    "a: b",
    "a:",
    "# x",
]
MEANINGFUL += [
    "a #x",
    "!x",
    "&a",
    "*a",
    "%x",
    "@x",
    "`x",
    "[",
    "]",
    "{",
    "}",
    ",",
    "'",
    '"',
    "|",
    ">",
    "''",
    '""',
    "\\",
]
MEANINGFUL += [
    "${seed}",
    "\\${seed}",
    "\\\\${seed}",
    "${",
    "$",
    "$${seed}",
    "${oc.env:HOME}",
    "${a:${b}}",
    "}${",
    "\\",
]
MEANINGFUL += [
    " ",
    "  x  ",
    "\tx",
    "x\t",
    "\n",
    "x\n\n",
    "\nx",
    "x\n  seed: 5\n",
    "é ✨",
    "👩\u200d👩",
    "\u202eabc",
    "\ufeffx",
]
ALPHABET = [
    *LINES,
    *MEANINGFUL,
    "\\",
    "$",
    "{",
    "}",
    ":",
    "#",
    "'",
    '"',
    " ",
    "  ",
    "a",
    "é",
    "😀",
    "\0"[:0],
    "\x07",
    "\x7f",
]


def drawn(count: int) -> list[str]:
    """Texts of a few pieces each, the same in every run."""
    draw = random.Random(0)
    return ["".join(draw.choices(ALPHABET, k=draw.randint(1, 6))) for _ in range(count)]


def test_every_unusual_character_is_kept() -> None:
    for start in range(0, len(UNUSUAL), 1000):
        texts = [
            form for one in UNUSUAL[start : start + 1000] for form in (one, f"a{one}b", f" {one}", f"{one} ")
        ]
        assert read_yaml(write_yaml(texts)) == texts


def test_every_character_is_kept_in_one_text() -> None:
    codes = [code for code in range(1, sys.maxunicode + 1) if code not in SURROGATES]
    for start in range(0, len(codes), 20_000):
        # the first half in a text without control characters, which is written as it stands
        text = "".join(map(chr, codes[start : start + 20_000]))
        assert read_yaml(write_yaml({"a": text}))["a"] == text


@pytest.mark.parametrize("texts", [LINES, MEANINGFUL, drawn(2000)], ids=["lines", "meaningful", "drawn"])
def test_texts_are_kept_and_written_on_one_line(texts: list[str]) -> None:
    for text in texts:
        written = write_yaml({"a": text})
        assert read_yaml(written) == {"a": text}
        assert len(written.splitlines()) == 1


def test_settings_are_kept(tmp_path: Path) -> None:
    """All settings that take text, with references escaped, and the origins of values as comments."""
    draw = random.Random(1)
    for text in [
        *LINES,
        *MEANINGFUL,
        *draw.sample(drawn(2000), 20),
        "é✨ " * 9_000,
        "\\" * 10_000,
        "x\u2028" * 1_000,
    ]:
        prompt = text if text.strip() else f"{text}x"
        config = run_config(prompt=prompt, negative=text, lora=[text], decoder=text, model="mini")
        for origins in (None, {"prompt": "a\nseed: 5\u2028b.yaml", "lora": "--lora"}):
            path = tmp_path / "run.yaml"
            path.write_text(to_yaml(config, origins=origins), encoding="utf-8")
            assert load(path).config == config, text[:50]


def test_a_long_prompt_is_kept(tmp_path: Path) -> None:
    config = run_config(prompt="é✨ x" * 25_000)
    (tmp_path / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(tmp_path / "run.yaml").config == config


def test_texts_of_the_command_line_are_taken_as_they_are() -> None:
    card = {key: value for key, value in leaves(run_config()).items() if key not in ("prompt", "lora")}
    for text in [*LINES, *MEANINGFUL]:
        prompt = text if text.strip() else f"{text}x"
        flags = {"prompt": prompt, "lora": [text], "decoder": text}
        config = load(None, flags=flags, settings=card | {"decoder": text}).config
        assert (config.prompt, config.lora, config.decoder) == (prompt, (text,), text)
        assert load(None, overrides=[f"prompt={prompt}"], settings=card).config.prompt == prompt


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "a\udcff"])
@pytest.mark.parametrize("key", ["prompt", "negative", "model", "decoder", "out", "edit.run"])
def test_text_that_cannot_be_kept_is_refused(key: str, text: str) -> None:
    with pytest.raises(
        InputError, match=rf"^{key}: '.*' \(argument\) (contains a null character|is not valid UTF-8)"
    ):
        run_config(**{key: text})
    with pytest.raises(InputError, match=r"^lora\[1\]: "):
        run_config(lora=["a", text])


def test_a_text_that_was_cut_off_or_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    bomb = "\n".join(
        f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]"
        for below, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    for text, problem in (
        (f"a: &a [x]\n{bomb}\n", "has more than 10,000 values"),
        ("a: &a [*a]\n", "has more than 10,000 values"),
        ("a: &a {b: *a}\n", "has more than 10,000 values"),
        ("[" * 20_000, "RecursionError"),
        ("a: !!binary aGk=\n", "could not determine a constructor"),
        ("a: !!timestamp 2024-01-01\n", "could not determine a constructor"),
        ("a: !!bool maybe\n", "KeyError"),
        ("a: b\x07\n", "special characters are not allowed"),
        ('a: "b\n', "found unexpected end of stream"),
        ("a: {b: 1, b: 2}\n", "found duplicate key b"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=f"is not valid YAML.*{problem}") as caught:
            load(path)
        assert "\n" not in caught.value.message


def test_anchors_and_merged_mappings_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\nc:\n  <<: [*b, *a]\n  z: 4\n"
    assert read_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 3, "z": 4}}
