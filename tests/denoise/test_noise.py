"""Noise is a function of seed, frame and draw, and of nothing else."""

import itertools

import pytest
import torch

from vinfinity.denoise.noise import INITIAL, frame_noise

SHAPE = (4, 5, 6)


def test_noise_is_the_same_whenever_it_is_drawn() -> None:
    first = frame_noise(7, range(3, 9), SHAPE, draw=2)
    torch.manual_seed(123)
    torch.randn(10)
    assert torch.equal(frame_noise(7, range(3, 9), SHAPE, draw=2), first)


@pytest.mark.parametrize("draw", [INITIAL, 1, 50])
def test_the_noise_of_a_frame_does_not_depend_on_the_number_of_frames(draw: int) -> None:
    long = frame_noise(0, range(300), SHAPE, draw=draw)
    for frames in (1, 16, 200):
        assert torch.equal(frame_noise(0, range(frames), SHAPE, draw=draw), long[:, :, :frames])


def test_the_noise_of_a_span_is_that_span_of_the_whole() -> None:
    whole = frame_noise(5, range(40), SHAPE)
    for start, stop in itertools.combinations((0, 1, 13, 26, 39, 40), 2):
        assert torch.equal(frame_noise(5, range(start, stop), SHAPE), whole[:, :, start:stop])


def test_noise_does_not_depend_on_the_threads_of_the_machine() -> None:
    before = torch.get_num_threads()
    one = frame_noise(1, range(4), SHAPE)
    torch.set_num_threads(2)
    try:
        assert torch.equal(frame_noise(1, range(4), SHAPE), one)
    finally:
        torch.set_num_threads(before)


def test_frames_draws_and_seeds_all_have_different_noise() -> None:
    seeds = (0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**63 - 1)
    rows = torch.cat(
        [
            frame_noise(seed, range(30), (1, 2, 4), draw=draw)[0, 0].flatten(1)
            for seed in seeds
            for draw in (INITIAL, 1, 2, 30, 1000)
        ]
    )
    # frame and draw are not to be confused: the noise of (frame 1, draw 2) is not that of (frame 2, draw 1)
    assert len(torch.unique(rows, dim=0)) == len(rows) == len(seeds) * 5 * 30
    # nor do streams overlap with a shift
    values = rows.flatten()
    assert len(torch.unique(values)) > 0.99 * len(values)


def test_noise_is_standard_normal_and_independent() -> None:
    noise = frame_noise(3, range(64), (4, 32, 32))
    count = noise.numel()
    assert abs(noise.mean()) < 5 / count**0.5
    assert abs(noise.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((noise**3).mean()) < 5 * (15 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / count) ** 0.5
    pairs = (
        (noise[:, :, 1:], noise[:, :, :-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise, frame_noise(4, range(64), (4, 32, 32))),
        (noise, frame_noise(3, range(64), (4, 32, 32), draw=1)),
    )
    for some, others in pairs:
        assert abs((some * others).mean()) < 5 / some.numel() ** 0.5


def test_noise_has_the_shape_and_type_of_latents() -> None:
    noise = frame_noise(0, range(10, 13), (4, 5, 6))
    assert noise.shape == (1, 4, 3, 5, 6)
    assert noise.dtype == torch.float32
    assert noise.is_contiguous()


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_far_frames_and_draws_work(seed: int) -> None:
    assert frame_noise(seed, range(10**6, 10**6 + 1), SHAPE, draw=1001).isfinite().all()
