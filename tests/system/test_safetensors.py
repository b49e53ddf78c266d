"""Safetensors files written and read without torch's help."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vinfinity.system.safetensors import (
    ELEMENT_BYTES,
    read_frames,
    read_header,
    shape_text,
    streamed_file,
)
from vinfinity.weights.dtypes import TORCH_TYPES
from vinfinity.weights.write import write_safetensors


def test_tensors_are_written_in_any_order_and_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.safetensors"
    with streamed_file(path, {"a": ("U8", (2, 3)), "b": ("I16", (2,))}, metadata={"x": "y"}) as file:
        file.write("b", b"\x01\x00\x02\x00")
        file.write("a", b"\x04\x05\x06", offset=3)
        assert not path.exists()
        file.write("a", b"\x01\x02\x03")
    tensors = load_file(path)
    assert tensors["a"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert tensors["b"].tolist() == [1, 2]
    assert [entry.name for entry in path.parent.iterdir()] == ["a.safetensors"]
    assert {name: (entry.dtype, entry.shape) for name, entry in read_header(path).items()} == {
        "a": ("U8", (2, 3)),
        "b": ("I16", (2,)),
    }


def test_a_file_is_on_disk_when_it_appears(tmp_path: Path, on_disk: Callable[[Path], bool]) -> None:
    path = tmp_path / "a.safetensors"
    with streamed_file(path, {"a": ("U8", (1,))}) as file:
        file.write("a", b"\x01")
    assert on_disk(path)
    assert on_disk(tmp_path)


def test_a_file_with_missing_bytes_does_not_appear(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with (
        pytest.raises(ValueError, match="a: 3 bytes are missing"),
        streamed_file(path, {"a": ("U8", (2, 3))}) as file,
    ):
        file.write("a", b"\x01\x02\x03")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_are_not_those_of_the_layout_are_refused(tmp_path: Path) -> None:
    layout = {"a": (torch.float16, (2,)), "b": (torch.float32, ())}
    a, b = torch.tensor([1.0, 2.0]), torch.tensor(3.0)
    write_safetensors(tmp_path / "x", layout, iter([("a", a), ("b", b)]))
    assert torch.equal(load_file(tmp_path / "x")["a"], a.half())
    for tensors, message in (
        ([("a", a)], "b: 4 bytes are missing"),
        ([("a", b), ("b", b)], r"a: has the shape \(\), not \(2,\)"),
        ([("a", a), ("b", b), ("c", b)], "c: is not in the layout"),
    ):
        with pytest.raises(ValueError, match=message):
            write_safetensors(tmp_path / "y", layout, iter(tensors))
        assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("frames", [range(1), range(2, 5), range(4, 5), range(5)], ids=str)
def test_frames_are_read_without_the_rest(frames: range, tmp_path: Path) -> None:
    x = torch.randn(1, 4, 5, 2, 3)
    save_file({"other": torch.zeros(7), "x": x}, tmp_path / "a.safetensors")
    data, shape = read_frames(tmp_path / "a.safetensors", "x", frames)
    read = torch.frombuffer(data, dtype=torch.float32).reshape(shape)
    assert torch.equal(read, x[0, :, frames.start : frames.stop])


def test_frames_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.randn(1, 4, 5, 2, 3)}, path)
    with pytest.raises(ValueError, match="header is damaged"):
        read_frames(path, "y", range(2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is truncated"):
        read_frames(path, "x", range(3, 5))
    with pytest.raises(OSError, match="No such file"):
        read_frames(tmp_path / "b.safetensors", "x", range(1))


def test_both_tables_of_types_agree() -> None:
    assert {name: dtype.itemsize for name, dtype in TORCH_TYPES.items()} == ELEMENT_BYTES


def test_shapes_as_text() -> None:
    assert (shape_text((2, 3)), shape_text(())) == ("2x3", "scalar")
