"""What ranks decide together after each denoising step."""

import pytest

from vinfinity.parallel.votes import Vote, Votes

FINE = Vote(finite=True)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_one_rank_with_nan_or_infinite_values_makes_the_step_non_finite(rank: int) -> None:
    votes = [FINE] * 3
    assert Votes(votes).finite
    votes[rank] = Vote(finite=False)
    assert not Votes(votes).finite


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_one_rank_that_was_asked_to_end_stops_all(rank: int) -> None:
    votes = [FINE] * 3
    assert not Votes(votes).stop
    votes[rank] = Vote(finite=True, stop=True)
    assert Votes(votes).stop


def test_only_the_clock_of_rank_0_makes_a_checkpoint_due() -> None:
    due = Vote(finite=True, checkpoint_due=True)
    assert Votes([due, FINE]).checkpoint_due
    assert not Votes([FINE, due]).checkpoint_due
