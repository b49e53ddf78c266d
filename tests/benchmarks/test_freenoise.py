"""FreeNoise as a setting of the study: its noise, its windows, and that short videos are the base model's."""

from pathlib import Path
from typing import Any

import freenoise
import numpy as np
import pytest
import torch

import vinfinity
from vinfinity.denoise.noise import frame_noise
from vinfinity.models.unet3d.layers import Attention
from vinfinity.parallel.scopes import plan_attention
from vinfinity.parallel.shards import FrameShards


@pytest.mark.parametrize("frames", [16, 17, 30, 96, 320])
def test_every_aligned_window_has_each_of_the_first_16_noises_once(frames: int) -> None:
    order = freenoise.noise_order(frames, seed=3)
    assert len(order) == frames
    assert order[:16].tolist() == list(range(16))
    for start in range(0, frames - 15, 4):
        assert sorted(order[start : start + 16]) == list(range(16))


def test_noise_is_shuffled_within_units_and_differs_by_seed() -> None:
    order = freenoise.noise_order(96, seed=3)
    units = [sorted(order[start : start + 4] // 4) for start in range(0, 96, 4)]
    assert units == [[unit % 4] * 4 for unit in range(24)]
    assert order[16:].tolist() != np.tile(np.arange(16), 5).tolist()
    assert order.tolist() != freenoise.noise_order(96, seed=4).tolist()
    assert order[:40].tolist() == freenoise.noise_order(40, seed=3).tolist()


@pytest.mark.parametrize(("frames", "count", "last"), [(5, 1, 5), (16, 1, 16), (18, 2, 16), (96, 21, 16)])
def test_windows_cover_the_video_and_weights_sum_to_one(frames: int, count: int, last: int) -> None:
    spans = freenoise.windows(frames)
    assert len(spans) == count
    assert spans[0].start == 0
    assert spans[-1] == range(frames - last, frames)
    weights = freenoise.window_weights(frames, spans)
    torch.testing.assert_close(weights.sum(0), torch.ones(frames))
    for span, row in zip(spans, weights, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(span)


def test_weights_fall_linearly_from_the_centre_of_a_window() -> None:
    """Frame 20 of 96 lies in the windows from 8, 12, 16 and 20, at positions 12, 8, 4 and 0."""
    spans = freenoise.windows(96)
    weights = freenoise.window_weights(96, spans)[:, 20]
    expected = torch.tensor([4.0, 8.0, 5.0, 1.0])
    torch.testing.assert_close(weights[2:6], expected / expected.sum())
    assert weights.count_nonzero() == 4


@torch.no_grad()
def test_attention_is_the_weighted_mean_of_plain_attention_in_windows() -> None:
    """As the definition has it: the windows' outputs are merged after the output projection."""
    attention = Attention(8, heads=2, head_width=4)
    frames = 26
    x = torch.randn(2, frames, 3, 8)
    plan = plan_attention(FrameShards(frames, 1), 0, None)
    [(rows, found)] = freenoise.window_attention(attention, torch.nn.Identity(), x, lambda: None, plan)  # type: ignore[arg-type, return-value]
    assert rows == slice(0, frames)
    spans = freenoise.windows(frames)
    weights = freenoise.window_weights(frames, spans)
    wanted = torch.zeros_like(x)
    for span, row in zip(spans, weights, strict=True):
        for b in range(2):
            part = attention(x[b, span.start : span.stop].transpose(0, 1)).transpose(0, 1)
            wanted[b, span.start : span.stop] += row[span.start : span.stop, None, None] * part
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def test_attention_on_a_part_of_the_frames_is_refused() -> None:
    plan = plan_attention(FrameShards(32, 2), 0, None)
    attention, x = Attention(8, heads=2, head_width=4), torch.zeros(1, 16, 1, 8)
    with pytest.raises(ValueError, match="one rank"):
        next(freenoise.window_attention(attention, torch.nn.Identity(), x, lambda: None, plan))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("frames", [7, 16])
def test_a_video_no_longer_than_the_training_clips_is_the_plain_pipelines(
    model_folder: Path, frames: int
) -> None:
    given: dict[str, Any] = {
        "model": str(model_folder),
        "size": "32x16",
        "seed": 5,
        "steps": 2,
        "device": "cpu",
    }
    plain = vinfinity.generate("a red ball", frames=frames, **given)
    found = freenoise.generate("a red ball", frames=frames, **given)
    torch.testing.assert_close(found.latents, plain.latents, atol=1e-5, rtol=0)


def test_a_longer_video_differs_and_the_package_is_left_as_it_was(model_folder: Path) -> None:
    given: dict[str, Any] = {
        "model": str(model_folder),
        "size": "32x16",
        "frames": 24,
        "steps": 2,
        "device": "cpu",
    }
    plain = vinfinity.generate("a red ball", seed=5, **given)
    found = freenoise.generate("a red ball", seed=5, **given)
    assert (found.latents - plain.latents).abs().max() > 0.01
    again = vinfinity.generate("a red ball", seed=5, **given)
    assert torch.equal(again.latents, plain.latents)


def test_noise_of_every_draw_follows_the_order() -> None:
    order = freenoise.noise_order(24, seed=1)
    for draw in (0, 3):
        found = freenoise.rescheduled_noise(order, [1] * 24, range(24), (4, 2, 2), draw=draw)
        first = frame_noise(1, range(16), (4, 2, 2), draw=draw)
        torch.testing.assert_close(found, first[:, :, order])
