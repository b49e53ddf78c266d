"""Which text guides each latent frame."""

import pytest
import torch

from vinfinity.config.prompts import TimedPrompt
from vinfinity.denoise.prompts import Mix, PromptSchedule

STATES = torch.randn(3, 5, 4)


def schedule(*prompts: TimedPrompt, frames: int = 20, loop: bool = False) -> PromptSchedule:
    return PromptSchedule((TimedPrompt(0, "a", "n"), *prompts), frames, loop)


def test_one_prompt_has_one_state_for_all_frames() -> None:
    text = schedule().text_of(STATES[:2], range(20), guided=True)
    assert text.of_frames is None
    assert torch.equal(text.states, STATES[[0, 1]][:, None])


def test_weights_rise_evenly_around_a_change() -> None:
    mixes = [schedule(TimedPrompt(10, "b", "n", blend=4)).mix(frame) for frame in range(20)]
    assert [mix.weight for mix in mixes[8:12]] == [0.125, 0.375, 0.625, 0.875]
    assert {(mix.first, mix.second) for mix in mixes[8:12]} == {(0, 1)}
    assert set(mixes[:8]) == {Mix(0, 0, 1.0)}
    assert set(mixes[12:]) == {Mix(1, 1, 1.0)}


def test_a_loop_blends_across_its_ends() -> None:
    prompts = PromptSchedule((TimedPrompt(0, "a", "n", blend=4), TimedPrompt(10, "b", "n")), 20, loop=True)
    found = [prompts.mix(frame) for frame in (18, 19, 0, 1, 2)]
    assert [(mix.first, mix.second) for mix in found] == [(1, 0)] * 4 + [(0, 0)]
    assert [mix.weight for mix in found[:4]] == [0.125, 0.375, 0.625, 0.875]


def test_equal_texts_are_one_state() -> None:
    text = schedule(TimedPrompt(10, "a", "n", blend=4)).text_of(STATES[:2], range(20), guided=True)
    assert text.of_frames is None


def test_negative_texts_change_with_prompts() -> None:
    prompts = schedule(TimedPrompt(10, "a", "m", blend=2))
    assert prompts.texts(guided=True) == ["n", "a", "m"]
    assert prompts.texts(guided=False) == ["a"]
    text = prompts.text_of(STATES, [0, 9, 15], guided=True)
    assert torch.equal(
        text.states[0], torch.stack([STATES[0], torch.lerp(STATES[0], STATES[2], 0.25), STATES[2]])
    )
    assert all(torch.equal(state, STATES[1]) for state in text.states[1])


def test_memory_holds_each_different_state_once() -> None:
    prompts = schedule(TimedPrompt(6, "b", "n", blend=2), TimedPrompt(12, "a", "n", blend=2))
    text = prompts.text_of(torch.randn(3, 5, 4), range(20), guided=True)
    # both prompts, and two frames of each change
    assert text.states.shape == (2, 6, 5, 4)


@pytest.mark.parametrize("frames", [range(20), range(3, 9), [0, 4, 5, 6, 11]], ids=str)
def test_runs_cover_frames_in_order(frames: range | list[int]) -> None:
    text = schedule(TimedPrompt(5, "b", "n"), TimedPrompt(9, "c", "n", cut=True)).text_of(
        torch.randn(4, 5, 4), frames, guided=True
    )
    positions = range(len(frames))
    runs = text.runs(positions)
    assert [position for run, _ in runs for position in run] == list(positions)
    for run, states in runs:
        for position in run:
            assert text.of_frames is not None
            assert torch.equal(states, text.states[:, text.of_frames[position]])


def test_cuts_divide_a_video_into_scenes() -> None:
    prompts = schedule(TimedPrompt(5, "b", "n"), TimedPrompt(9, "c", "n", cut=True))
    assert prompts.scenes == [range(9), range(9, 20)]
