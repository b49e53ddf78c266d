"""How long the frames of an earlier video are kept during an edit."""

from vinfinity.denoise.kept_frames import kept_until


def test_frames_next_to_a_join_are_kept_for_most_of_the_steps() -> None:
    until = kept_until(range(24), known=20, redo=range(4, 20), blend=3, steps=32).tolist()
    assert until == [32] * 4 + [30, 24, 14] + [0] * 17
    until = kept_until(range(20), known=20, redo=range(4, 14), blend=9, steps=9).tolist()
    assert until == [9] * 4 + [8, 5, 0, 0, 0, 0, 0, 0, 5, 8] + [9] * 6
    # even with few steps, a frame to regenerate is free for at least one of them
    assert kept_until(range(20), known=20, redo=range(4, 20), blend=4, steps=2).tolist()[4:8] == [1, 1, 1, 1]


def test_in_a_loop_frames_at_an_end_blend_with_those_at_the_other_end() -> None:
    def until(redo: range, *, loop: bool) -> list[int]:
        return kept_until(range(96), known=96, redo=redo, blend=4, steps=25, loop=loop).tolist()

    start = until(range(0, 20), loop=True)
    assert start == [24, 21, 16, 9] + [0] * 12 + [9, 16, 21, 24] + [25] * 76
    assert until(range(76, 96), loop=True) == start[20:] + start[:20]
    assert until(range(0, 20), loop=False) == [0] * 16 + start[16:]
    # joins inside the video, and none at all where everything is new
    assert until(range(30, 50), loop=True) == until(range(30, 50), loop=False)
    assert until(range(0, 96), loop=True) == [0] * 96
