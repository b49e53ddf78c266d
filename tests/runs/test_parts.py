"""Folders of parts: any ranks write them, and any range of frames can be read."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vinfinity.runs.parts import COPIED_FRAMES, read_manifest, save_whole, write_manifest, write_part


@pytest.mark.parametrize("ends", [[6], [1, 6], [2, 3, 6], [1, 2, 3, 4, 5, 6]])
def test_any_range_of_frames_can_be_read_whichever_ranks_wrote_them(ends: list[int], tmp_path: Path) -> None:
    x = torch.randn(1, 4, 6, 3, 2)
    written = [
        write_part(tmp_path, range(start, stop), {"x": x[:, :, start:stop]})
        for start, stop in pairwise([0, *ends])
    ]
    write_manifest(tmp_path, written, step=3, settings="these", tensors=("x",), seeds=[7, 7, 2, 2, 2, 7])
    parts = read_manifest(tmp_path)
    assert parts.seeds == ((0, 2, 7), (2, 5, 2), (5, 6, 7))
    parts.verify()
    for start in range(6):
        for stop in range(start + 1, 7):
            assert torch.equal(parts.read(range(start, stop)), x[0, :, start:stop])
    save_whole(parts, tmp_path / "whole.safetensors", source="x", name="latents")
    assert torch.equal(load_file(tmp_path / "whole.safetensors")["latents"], x)


def test_the_copy_of_the_latents_takes_memory_for_some_frames_only(tmp_path: Path) -> None:
    x = torch.randn(1, 4, 10 * COPIED_FRAMES + 7, 8, 8)
    frames = x.shape[2]
    part = write_part(tmp_path, range(frames), {"x": x})
    parts = write_manifest(tmp_path, [part], step=1, settings="", tensors=("x",), seeds=[0] * frames)
    tracemalloc.start()
    save_whole(parts, tmp_path / "whole.safetensors", source="x", name="latents")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes / 4
    assert torch.equal(load_file(tmp_path / "whole.safetensors")["latents"], x)
