"""Which frames an edit computes, and the seeds of their noise."""

from collections.abc import Sequence

import pytest
import torch

from vinfinity.denoise.selection import Selection, StepNoise, select_all, select_around
from vinfinity.parallel.spans import spans


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([], []),
        ([4], [range(4, 5)]),
        ([0, 1, 2], [range(0, 3)]),
        ([0, 2, 3, 7], [range(0, 1), range(2, 4), range(7, 8)]),
    ],
)
def test_spans_are_runs_of_consecutive_frames(frames: list[int], expected: list[range]) -> None:
    assert spans(frames) == expected
    assert [frame for span in spans(frames) for frame in span] == frames


def test_a_new_video_selects_and_generates_all_frames() -> None:
    selection = select_all(5, seed=7)
    assert list(selection.frames) == list(selection.generated) == [0, 1, 2, 3, 4]
    assert list(selection.seeds) == [7] * 5
    assert selection.of(range(2, 4)) == [2, 3]


def around(total: int, generated: list[int], *, context: int = 2, anchors: int = 2) -> Selection:
    return select_around(
        total, generated, context=context, anchors=anchors, trained_frames=16, seeds=[0] * total
    )


def test_an_edit_selects_its_frames_their_context_and_the_anchors() -> None:
    selection = around(40, [20, 21])
    assert selection.frames == (10, 18, 19, 20, 21, 22, 23, 30)
    assert selection.generated == frozenset({20, 21})


def test_context_ends_at_the_ends_of_the_video() -> None:
    assert around(40, [0, 39], anchors=1).frames == (0, 1, 2, 20, 37, 38, 39)


def test_each_edited_span_has_its_own_context() -> None:
    assert around(40, [5, 32], context=1).frames == (4, 5, 6, 10, 30, 31, 32, 33)


def test_an_edit_of_a_short_video_computes_all_of_it() -> None:
    assert around(16, [3]).frames == tuple(range(16))
    assert around(17, [3]).frames != tuple(range(17))


def test_the_noise_of_a_selected_frame_is_that_of_the_whole_video() -> None:
    seeds = [3] * 20 + [4] * 20
    selection = select_around(40, [30], context=1, anchors=2, trained_frames=16, seeds=seeds)
    frames, shape = selection.of(range(len(selection.frames))), (4, 3, 2)
    first, second = (select_all(40, seed=seed).noise(range(40), shape) for seed in (3, 4))
    expected = torch.cat([first[:, :, :20], second[:, :, 20:]], dim=2)
    assert torch.equal(selection.noise(frames, shape), expected[:, :, frames])


def test_a_sampler_draws_new_noise_in_every_step() -> None:
    selection, shape = select_all(3, seed=0), (4, 2, 2)
    noise = StepNoise(selection, range(3), shape, torch.device("cpu"), steps=5)
    draws = [selection.noise(range(3), shape), *(noise(step) for step in range(3))]
    for index, draw in enumerate(draws):
        assert all(not torch.equal(draw, other) for other in draws[:index])
    assert torch.equal(noise(1), draws[2])


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (2, 3, 4), (3, 1, 1)], ids=str)
def test_noise_drawn_ahead_of_its_step_is_the_same(order: tuple[int, ...]) -> None:
    drawn: list[int] = []

    class Watched(Selection):
        def noise(self, frames: Sequence[int], shape: tuple[int, int, int], *, draw: int = 0) -> torch.Tensor:
            drawn.append(draw - 1)
            return super().noise(frames, shape, draw=draw)

    selection, shape = Watched(range(3), range(3), (0, 0, 0)), (4, 2, 2)
    ahead = StepNoise(selection, range(3), shape, torch.device("cpu"), steps=5, ahead=True)
    plain = StepNoise(select_all(3, seed=0), range(3), shape, torch.device("cpu"), steps=5)
    for step in order:
        assert torch.equal(ahead(step), plain(step))
    # none beyond the last step
    assert max(drawn) <= 4
