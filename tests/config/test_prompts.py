"""Prompts over time: moments, blends, and what does not fit into a video."""

from fractions import Fraction

import pytest

from vinfinity.config.prompts import BLEND, Prompt, TimedPrompt, parse_moment, time_prompts
from vinfinity.errors import InputError


def timed(
    *prompts: Prompt, prompt: str = "a", frames: int = 96, loop: bool = False
) -> tuple[TimedPrompt, ...]:
    return time_prompts(prompt, prompts, negative="n", frames=frames, fps=8, loop=loop)


@pytest.mark.parametrize(
    ("moment", "frame"),
    [(0, 0), (7, 7), ("7", 7), ("3s", 24), ("3 s", 24), ("1.5s", 12), ("50%", 48), ("0%", 0), ("33.4%", 32)],
)
def test_a_moment_is_a_frame_a_time_or_a_part_of_the_video(moment: int | str, frame: int) -> None:
    assert parse_moment(moment, frames=96, fps=8, field="at") == frame


def test_times_are_exact_at_fractional_frame_rates() -> None:
    assert parse_moment("1001s", frames=1, fps=Fraction(30000, 1001), field="at") == 30000


@pytest.mark.parametrize("moment", ["", "x", "-1", "1.5", "1e3", "12m", "s", "1:30", "٣s", -1])
def test_what_is_no_moment_is_refused(moment: int | str) -> None:
    with pytest.raises(InputError, match=r"at: "):
        parse_moment(moment, frames=96, fps=8, field="at")


def test_a_prompt_alone_holds_throughout() -> None:
    assert timed() == (TimedPrompt(0, "a", "n", 0, False),)


def test_the_first_of_several_may_be_the_prompt_or_the_first_entry() -> None:
    entries = (Prompt("a"), Prompt("b", at=48))
    assert timed(*entries, prompt="") == timed(entries[1])


def test_blends_are_as_long_as_there_is_room_for() -> None:
    found = timed(Prompt("b", at=40), Prompt("c", at=46), Prompt("d", at=90))
    assert [prompt.blend for prompt in found] == [0, 6, 6, 6]
    assert timed(Prompt("b", at=48))[1].blend == BLEND


def test_a_prompt_may_have_a_negative_one_of_its_own_and_it_may_be_empty() -> None:
    found = timed(Prompt("b", at=40, negative="x"), Prompt("c", at=60, negative=""))
    assert [prompt.negative for prompt in found] == ["n", "x", ""]


def test_a_loop_blends_at_its_ends() -> None:
    first, second = timed(Prompt("b", at=48), loop=True)
    assert (first.blend, second.blend) == (BLEND, BLEND)
    assert timed(loop=True)[0].blend == 0


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        ([Prompt("b", at=96)], r"prompts\[0\]\.at: 96 is beyond the video's 96 frames"),
        ([Prompt("b", at="101%")], r"prompts\[0\]\.at: 101% is beyond"),
        ([Prompt("b", at=0)], r"prompts\[0\]\.at: 0 is frame 0, but the previous prompt begins at frame 0"),
        ([Prompt("b", at=9), Prompt("c", at=9)], r"prompts\[1\]\.at: 9 is frame 9, but"),
        (
            [Prompt("b", at=9), Prompt("c", at=3)],
            r"prompts\[1\]\.at: 3 is frame 3, but.*put prompts in order",
        ),
        ([Prompt(" ", at=9)], r"prompts\[0\]\.text: .*is blank"),
        ([Prompt("b", at=9, blend=30)], r"prompts\[0\]\.blend: 30 reaches back to the beginning"),
        ([Prompt("b", at=90, blend="2s")], r"prompts\[0\]\.blend: 2s reaches beyond the end"),
        (
            [Prompt("b", at=30, blend=10), Prompt("c", at=38, blend=10)],
            r"prompts\[1\]\.blend: 10 reaches back to the change at frame 30",
        ),
        (
            [Prompt("b", at=30, blend=20), Prompt("c", at=35, cut=True)],
            r"prompts\[0\]\.blend: 20 reaches the change at frame 35",
        ),
        (
            [Prompt("b", at=30, blend=20), Prompt("c", at=35)],
            r"prompts\[0\]\.blend: 20 reaches the change at frame 35",
        ),
        ([Prompt("b", at=30, blend=4, cut=True)], r"prompts\[0\]\.blend: 4 has no effect at a cut"),
        ([Prompt("b", at="later")], r"prompts\[0\]\.at: later is not a moment"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(prompts: list[Prompt], line: str) -> None:
    with pytest.raises(InputError, match=line) as raised:
        timed(*prompts)
    assert "\n" not in str(raised.value)


def test_a_beginning_without_a_prompt_is_refused() -> None:
    with pytest.raises(InputError, match=r"prompts\[0\]\.at: 5 leaves the beginning without a prompt"):
        timed(Prompt("b", at=5), prompt="")


def test_a_cut_in_a_loop_is_refused() -> None:
    with pytest.raises(InputError, match=r"prompts\[0\]\.cut: .*a loop is one scene"):
        timed(Prompt("b", at=5, cut=True), loop=True)
