"""How long the frames of an earlier video are kept during an edit."""

from vinfinity.denoise.kept_frames import kept_until


def test_frames_next_to_a_join_are_kept_for_most_of_the_steps() -> None:
    until = kept_until(range(24), known=20, redo=range(4, 20), blend=3, steps=32).tolist()
    assert until == [32] * 4 + [30, 24, 14] + [0] * 17
    until = kept_until(range(20), known=20, redo=range(4, 14), blend=9, steps=9).tolist()
    assert until == [9] * 4 + [8, 5, 0, 0, 0, 0, 0, 0, 5, 8] + [9] * 6
    # even with few steps, a frame to regenerate is free for at least one of them
    assert kept_until(range(20), known=20, redo=range(4, 20), blend=4, steps=2).tolist()[4:8] == [1, 1, 1, 1]
