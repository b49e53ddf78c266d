"""Groups of frames: every frame is in one piece, and pieces have the same extent on any number of ranks."""

import pytest

from vinfinity.parallel.groups import GROUPS, ONE_GROUP, UNIT, Grouping, Piece, group_size
from vinfinity.parallel.shards import FrameShards


def spans(held: range, pieces: list[Piece]) -> list[range]:
    """Return the whole spans of pieces, in the video."""
    return [
        range(held.start + piece.own.start - piece.before, held.start + piece.own.stop + piece.after)
        for piece in pieces
    ]


@pytest.mark.parametrize("frames", [1, 7, 32, 33, 37, 96, 191, 385, 1200, 2300, 10001])
def test_groups_are_units_that_stay_few(frames: int) -> None:
    group = group_size(frames)
    if frames <= ONE_GROUP:
        assert group == frames
    else:
        assert group % UNIT == 0
        assert -(-frames // group) <= max(GROUPS, frames // UNIT + 1)
        assert frames <= GROUPS * UNIT or -(-frames // group) <= GROUPS


@pytest.mark.parametrize("frames", [1, 5, 16, 37, 96, 385, 500])
@pytest.mark.parametrize("most", [1, 3, 8, 1000])
def test_pieces_have_the_same_spans_on_any_number_of_ranks(frames: int, most: int) -> None:
    group = group_size(frames)
    alone = spans(range(frames), Grouping(range(frames), frames, group).pieces(most))
    assert [frame for span in alone for frame in span] == list(range(frames))
    for ranks in range(2, min(frames, 7) + 1):
        for unit in (None, group):
            shards, found = FrameShards(frames, ranks, unit), []
            for rank in range(ranks):
                held = shards.held(rank)
                pieces = Grouping(held, frames, group).pieces(most)
                own = [frame for piece in pieces for frame in range(piece.own.start, piece.own.stop)]
                assert own == list(range(len(held)))
                found += spans(held, pieces)
            assert list(dict.fromkeys(found)) == alone


def test_without_groups_pieces_hold_no_frames_of_others() -> None:
    pieces = Grouping(range(5, 15), 40).pieces(4)
    assert pieces == [Piece(slice(0, 4)), Piece(slice(4, 8)), Piece(slice(8, 10))]


@pytest.mark.parametrize("frames", [37, 96, 192, 288, 2300])
def test_shards_keep_units_together_if_there_are_enough(frames: int) -> None:
    unit = group_size(frames)
    for ranks in range(1, 9):
        shards = FrameShards(frames, ranks, unit)
        held = [shards.held(rank) for rank in range(ranks)]
        assert [frame for span in held for frame in span] == list(range(frames))
        assert all(shards.owner(frame) == rank for rank, span in enumerate(held) for frame in span)
        if ranks <= -(-frames // unit):
            assert all(span.start % unit == 0 for span in held)
            assert max(map(len, held)) - min(map(len, held)) <= 2 * unit
        else:
            assert max(map(len, held)) - min(map(len, held)) <= 1


@pytest.mark.parametrize("ranks", [1, 3, 7, 20])
def test_whole_groups_may_be_computed_together(ranks: int) -> None:
    """Up to the limit; parts of groups stay pieces of their own."""
    shards = FrameShards(130, ranks, 8)
    for rank in range(ranks):
        held = shards.held(rank)
        apart, together = (Grouping(held, 130, 8, several).pieces(20) for several in (False, True))
        assert [frame for piece in together for frame in range(*piece.own.indices(130))] == [
            *range(len(held))
        ]
        assert all(piece.own.stop - piece.own.start <= 20 for piece in together)
        padded = [piece for piece in apart if piece.before or piece.after]
        assert [piece for piece in together if piece.before or piece.after] == padded
        if len(held) > 16 and not padded:
            assert len(together) < len(apart)
