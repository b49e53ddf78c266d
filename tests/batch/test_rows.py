"""The rows of a batch from text, YAML, JSON lines, CSV and Python, and what is said about faulty ones."""

from pathlib import Path

import pytest
from oracles.command_line import Cli

from vinfinity.batch.rows import python_rows, read_rows
from vinfinity.errors import InputError


def values(folder: Path, name: str, text: str) -> list[dict[str, object]]:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return [dict(row.layer.values) for row in read_rows(path)]


def refusal(folder: Path, name: str, text: str) -> str:
    with pytest.raises(InputError) as raised:
        values(folder, name, text)
    assert raised.value.exit_code == 2
    assert "\n" not in raised.value.message
    return raised.value.message


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    text = "a red ball\r\n\n  a blue boat: 50%, # {x} \n${seed}\u2028two"
    assert values(tmp_path, "p.txt", text) == [
        {"prompt": "a red ball"},
        {"prompt": "a blue boat: 50%, # {x}"},
        {"prompt": "\\${seed}\u2028two"},
    ]


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    expected = [
        {"prompt": "a red ball", "steps": 4, "attention.local": 2, "guidance": 7.5},
        {"prompt": "a boat, blue", "video.sheet": False},
    ]
    csv = 'prompt,steps,attention.local,guidance,video.sheet\na red ball,4,2,7.5,\n"a boat, blue",,,,false\n'
    yaml = """
- {prompt: a red ball, steps: 4, attention: {local: 2}, guidance: 7.5}
- prompt: a boat, blue
  video.sheet: false
"""
    lines = """{"prompt": "a red ball", "steps": 4, "attention": {"local": 2}, "guidance": 7.5}

{"prompt": "a boat, blue", "video.sheet": false}"""
    assert values(tmp_path, "p.csv", csv) == expected
    assert values(tmp_path, "p.csv", f"\ufeff{csv}") == expected
    assert values(tmp_path, "p.tsv", csv.replace(",", "\t").replace("\t blue", ", blue")) == expected
    assert values(tmp_path, "p.yaml", yaml) == expected
    assert values(tmp_path, "p.jsonl", lines) == expected
    assert values(tmp_path, "p.json", f"[{lines.replace(chr(10) * 2, ',')}]") == expected
    assert [row.layer.values for row in python_rows(expected)] == expected


def test_lists_may_hold_prompts(tmp_path: Path) -> None:
    assert values(tmp_path, "p.yml", "- a red ball\n- prompt: x") == [
        {"prompt": "a red ball"},
        {"prompt": "x"},
    ]
    assert values(tmp_path, "p.jsonl", '"a red ball"') == [{"prompt": "a red ball"}]
    assert [row.layer.values for row in python_rows(["a red ball"])] == [{"prompt": "a red ball"}]


def test_a_long_yaml_file_is_read(tmp_path: Path) -> None:
    assert len(values(tmp_path, "p.yaml", "- {prompt: x, seed: 1}\n" * 4000)) == 4000


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", " \n\n", "FILE: {path} has no rows; write one prompt per line"),
        ("p.csv", "", "FILE: {path} has no rows"),
        ("p.csv", "prompt,seed\n", "FILE: {path} has no rows"),
        ("p.yaml", "# nothing\n", "FILE: {path} has no rows"),
        ("p.json", "", "FILE: {path} has no rows"),
        ("p.yaml", "prompt: x", "FILE: {path} is not a list of rows; write a list of rows"),
        ("p.yaml", "- [1, 2]", "row: [1, 2] (p.yaml, row 1) is not a row; write a prompt, or settings"),
        ("p.yaml", "- 'x\n", "FILE: {path} is not valid YAML at line 2"),
        ("p.jsonl", '"x"\n{"prompt": }', "FILE: {path} is not valid JSON at line 2"),
        ("p.csv", "prompt,setps\nx,3\n", "setps: 3 (p.csv, row 1, line 2) is an unknown setting; did you mean steps?"),
        ("p.jsonl", '"a"\n{"attention": {"lokal": 3}}', "attention.lokal: 3 (p.jsonl, row 2, line 2) is an unknown"),
        ("p.csv", "prompt,attention\nx,3\n", "attention: 3 (p.csv, row 1, line 2) is a group"),
        ("p.csv", "prompt;seed\nx;3\n", "column: prompt;seed (p.csv, line 1) is not the name of a setting; separate"),
        ("p.csv", "seed,prompt,seed\n1,x,3\n", "column: seed (p.csv, line 1) appears twice; keep one"),
        ("p.csv", "prompt,seed\na boat, blue,3\n", "cell: 3 (p.csv, line 2) is in no column: the row has 3 cells"),
        ("p.csv", 'prompt,seed\n"a boat\n', "FILE: {path} is not valid CSV at line 2"),
        ("p.yaml", "- prompt: ' '", "prompt: '' (p.yaml, row 1) is blank; describe the video"),
        ("p.csv", "prompt,lora\nx,[a\n", "FILE"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_with_row_and_column(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    if said == "FILE":
        said = "lora: [a (p.csv, row 1, line 2) is not valid YAML"
    assert refusal(tmp_path, name, text).startswith(said.format(path=tmp_path / name))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"FILE: .*none\.txt does not exist; check the path"):
        read_rows(tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"FILE: .* is not a file"):
        read_rows(tmp_path)
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"FILE: .* cannot be read; check its permissions and encoding \(UTF-8\)"
    ):
        read_rows(tmp_path / "latin.txt")


def test_python_rows_that_are_no_list_are_refused() -> None:
    with pytest.raises(InputError, match="rows: an empty list has no rows"):
        python_rows([])
    with pytest.raises(InputError, match="is not a list of rows"):
        python_rows({"prompt": "x"})  # type: ignore[arg-type]


def test_all_faulty_rows_are_reported(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "p.csv"
    file.write_text("prompt,setps\n" + "".join(f"x,{n}\n" for n in range(15)) + "x,0\n" * 2)
    code, out, err = cli("batch", str(file), "--folder", str(tmp_path / "videos"))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("error: setps: 0 (p.csv, row 1, line 2) is an unknown setting;")
    assert lines[0].endswith("(and 2 more rows)")
    assert lines[9] == "error: there are 5 more faults"
    assert not (tmp_path / "videos").exists()
