"""Teams of ranks, one per guidance branch: their frames, and the frames that they send each other."""

import pytest

from vinfinity.parallel.teams import opposite, team_of


@pytest.mark.parametrize(("ranks", "frames"), [(2, 5), (3, 7), (4, 16), (5, 13), (7, 8)])
def test_every_frame_belongs_to_one_rank_of_each_team(ranks: int, frames: int) -> None:
    teams = [team_of(rank, ranks, frames=frames, split=True) for rank in range(ranks)]
    for branch in (0, 1):
        frames_of_team = [frame for team in teams if team.branch == branch for frame in team.held]
        assert frames_of_team == list(range(frames))
    sizes = [sum(team.branch == branch for team in teams) for branch in (0, 1)]
    assert 0 <= sizes[0] - sizes[1] <= 1
    assert sum(len(team.held) for team in teams if team.writes) == frames


@pytest.mark.parametrize(("ranks", "frames"), [(2, 5), (3, 7), (4, 16), (5, 13), (7, 8)])
def test_each_team_receives_the_frames_it_expects(ranks: int, frames: int) -> None:
    teams = [team_of(rank, ranks, frames=frames, split=True) for rank in range(ranks)]
    sent = {}
    for team in teams:
        peers, route = opposite(team)
        for peer, positions in route.sends:
            sent[team.rank, peers[peer]] = [team.held[position] for position in positions]
    for team in teams:
        peers, route = opposite(team)
        received: list[int] = []
        for peer, start, stop in route.receives:
            assert sent.pop((peers[peer], team.rank)) == list(route.wanted[start:stop])
            received += route.wanted[start:stop]
        assert received == list(team.held)
    assert sent == {}


def test_without_a_split_all_ranks_are_one_team() -> None:
    teams = [team_of(rank, 3, frames=10, split=False) for rank in range(3)]
    assert [team.branch for team in teams] == [None] * 3
    assert [len(team.held) for team in teams] == [3, 3, 4]
    assert all(team.writes for team in teams)


def test_two_branches_need_two_ranks() -> None:
    with pytest.raises(ValueError, match="two ranks"):
        team_of(0, 1, frames=10, split=True)
