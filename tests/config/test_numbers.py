"""Numbers are decimal, wherever they come from: nothing is read as octal, in base 60 or as any other notation."""

import math
from pathlib import Path

import pytest
from oracles.settings import run_config

from vinfinity.config import declared, load
from vinfinity.config.schema import bare, flag_of
from vinfinity.errors import InputError
from vinfinity.system.numbers import read_number
from vinfinity.weights.card import model_defaults

# what PyYAML, Python or other programs would take for numbers
NOT_DECIMAL = [
    "010",
    "-010",
    "0x1F",
    "0o17",
    "0b11",
    "1:30",
    "1:30:00",
    "1_000",
    "00",
    "１２",
    "٣",
    "²",
    "1,5",
    "1 2",
]
NOT_DECIMAL += [
    "1e",
    "e3",
    ".",
    "+",
    "--5",
    "5-",
    "1.2.3",
    "010.5",
    "1:30.5",
    "1_0.5",
    "٣.٥",
    "twelve",
    "1" * 101,
]
NOT_WHOLE = ["1e3", "3.0", "3.", ".5", ".inf", "-.inf", ".nan", "inf", "nan"]
WHOLE = {"0": 0, "24": 24, "+24": 24, "-3": -3, "9" * 100: int("9" * 100)}
DECIMAL = {"7.5": 7.5, "7.": 7.0, ".5": 0.5, "-.5": -0.5, "1e3": 1000.0, "1.5E-2": 0.015, "-.inf": -math.inf}


def numeric(kind: type) -> list[str]:
    """Return the settings that are numbers of a type."""
    return [key for key, setting in declared().items() if bare(setting.kind) is kind]


def refused(tmp_path: Path, key: str, text: str) -> list[str]:
    """Return the messages that refuse a value in a file, as KEY=VALUE and as a flag."""
    path = tmp_path / "run.yaml"
    path.write_text(f"{key}: {text}\n", encoding="utf-8")
    messages = []
    for yaml, overrides, flags, source in (
        (path, [], {}, str(path)),
        (None, [f"{key}={text}"], {}, "command line"),
        (None, [], {key: text}, declared()[key].flag or flag_of(key)),
    ):
        with pytest.raises(InputError) as caught:
            load(yaml, overrides=overrides, flags=flags, card=model_defaults)
        # a flag that is not named after its setting stands in its place
        renamed = source == declared()[key].flag != flag_of(key)
        assert caught.value.message.startswith(source if renamed else key)
        assert renamed or f"({source})" in caught.value.message
        messages.append(caught.value.message)
    return messages


def test_numbers_are_read_as_decimal() -> None:
    for text, number in {**WHOLE, **DECIMAL}.items():
        assert read_number(text) == number, text
        assert type(read_number(text)) is type(number), text
    assert math.isnan(read_number(".nan") or 0)
    assert [text for text in NOT_DECIMAL if read_number(text) is not None] == []


@pytest.mark.parametrize("text", [*NOT_DECIMAL, *NOT_WHOLE])
def test_a_whole_number_in_another_notation_is_refused(text: str, tmp_path: Path) -> None:
    for message in refused(tmp_path, "frames", text):
        assert "is not a whole number; write it in decimal digits, such as 24" in message


@pytest.mark.parametrize("text", NOT_DECIMAL)
def test_a_number_in_another_notation_is_refused(text: str, tmp_path: Path) -> None:
    for message in refused(tmp_path, "guidance", text):
        assert "is not a number; write it as a decimal number, such as 7.5" in message


def test_every_numeric_setting_is_decimal(tmp_path: Path) -> None:
    for kind, problem in ((int, "is not a whole number"), (float, "is not a number")):
        assert len(numeric(kind)) >= 3
        for key in numeric(kind):
            for text in ("010", "1:30", "1_000"):
                assert all(problem in message for message in refused(tmp_path, key, text)), key


def test_numbers_in_lists_and_tags_are_decimal_too(tmp_path: Path) -> None:
    schedule = "[{above: 0800, local: 0, anchors: 1}, {above: -1, local: 0, anchors: 1}]"
    path = tmp_path / "run.yaml"
    path.write_text(f"attention.schedule: {schedule}\n")
    for yaml, overrides in ((path, []), (None, [f"attention.schedule={schedule}"])):
        with pytest.raises(
            InputError, match=r"^attention\.schedule\[0\]\.above: 0800 .* is not a whole number"
        ):
            load(yaml, overrides=overrides, card=model_defaults)
    for text in ("!!int 010", "!!int 0x1F", "!!int 1:30", "!!float 1:30"):
        path.write_text(f"frames: {text}\n")
        with pytest.raises(InputError, match="is not a decimal number"):
            load(path)
    path.write_text('frames: "24"\n')
    with pytest.raises(InputError, match=r"^frames: 24 .* is not a whole number; remove its quotes"):
        load(path, card=model_defaults)


def test_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for text in ("010", "1:30", "1_000", "0x1F", "2024-01-01"):
        path.write_text(f"prompt: {text}\n")
        assert load(path, card=model_defaults).config.prompt == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("size", "５１２x３２０"),
        ("size", "0512x0320"),
        ("checkpoint.every", "٣ steps"),
        ("checkpoint.every", "05 steps"),
        ("edit.redo", "１:２"),
        ("edit.redo", "01:020"),
    ],
)
def test_numbers_in_texts_are_decimal_too(key: str, text: str) -> None:
    with pytest.raises(InputError, match=r"is not an? (size|interval|range)"):
        run_config(**{"edit.run": "a.run", key: text})


def test_every_whole_number_has_an_upper_bound() -> None:
    for key in numeric(int):
        with pytest.raises(InputError, match=rf"^{key}: 9+ \(argument\) is (more than|not between)"):
            run_config(**{key: 10**30 - 1})
    for key in numeric(float):
        with pytest.raises(InputError, match=rf"^{key}: "):
            run_config(**{key: math.inf})
