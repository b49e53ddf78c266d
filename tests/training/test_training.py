"""The training scripts of the embedded model, by a few steps of each on tiny data."""

from pathlib import Path
from typing import Any

import pytest
import torch

common = pytest.importorskip("common", reason="needs diffusers and transformers", exc_type=ImportError)
painter = pytest.importorskip("painter", reason="needs diffusers and transformers", exc_type=ImportError)
train_vae = pytest.importorskip("train_vae", reason="needs diffusers and transformers", exc_type=ImportError)


def make_vae(seed: int) -> Any:
    """An untrained autoencoder."""
    torch.manual_seed(seed)
    return train_vae.build_vae().eval()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two modules have the same weights."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_painter_is_trained_anew_for_an_autoencoder_with_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "painter.pt"
    first = painter.load_painter(make_vae(1), path, steps=2, count=4)
    again = painter.load_painter(make_vae(1), path, steps=3, count=4)
    other = painter.load_painter(make_vae(2), path, steps=2, count=4)
    kept = painter.load_painter(make_vae(2), path, steps=3, count=4)
    assert same(first, again)
    assert not same(first, other)
    assert same(other, kept)
