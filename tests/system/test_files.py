"""JSON, temporary names and logs: every text is kept, on lines of their own."""

import json
import sys
from pathlib import Path

import pytest

from vinfinity.errors import OutputError
from vinfinity.system.files import temporary, to_json, write_whole
from vinfinity.system.progress import add_line


def test_json_keeps_every_character_and_has_no_other_line_breaks() -> None:
    for start in range(0, sys.maxunicode + 1, 50_000):
        # spaces: two surrogates side by side would be one character
        text = " ".join(map(chr, range(start, min(start + 50_000, sys.maxunicode + 1))))
        written = to_json({"a": text, "b": [text[:3]]})
        assert json.loads(written) == {"a": text, "b": [text[:3]]}
        assert len(written.splitlines()) == 1
        # bytes of file names that are not UTF-8 are escaped, too
        written.encode()
    assert to_json({"a": "é✨"}) == '{"a": "é✨"}'
    assert to_json({"a": ["\u2028"]}, indent=1) == '{\n "a": [\n  "\\u2028"\n ]\n}'


def test_a_log_has_one_line_for_each_message(tmp_path: Path) -> None:
    for message in ("a\nb", "a\u2028b\x85c", "\udcff", "é ✨"):
        add_line(tmp_path / "log.txt", message)
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["a b", "a b c", r"\udcff", "é ✨"]


@pytest.mark.parametrize("name", ["a.png", "x" * 255, "é" * 127, "12:30.json", "-", "a b ", "\udcff"])
def test_files_of_any_name_are_written_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    write_whole(path, "first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]
    unfinished = temporary(path)
    assert unfinished.parent == path.parent
    assert len(unfinished.name) < 40
    assert unfinished not in (temporary(path, "other"), temporary(tmp_path / f"new/{name[1:]}y"))


def test_a_name_that_is_too_long_is_an_error_without_remains(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path / ("x" * 256), "text")
    assert list(tmp_path.iterdir()) == []
