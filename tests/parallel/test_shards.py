"""The frames of each rank, and the frames that ranks send each other."""

import pytest

from vinfinity.parallel.context import plan_halo
from vinfinity.parallel.shards import FrameShards, Route, anchor_frames, plan_route
from vinfinity.parallel.timeline import one_scene

PAIRS = [
    (frames, ranks)
    for frames in (*range(1, 41), 63, 64, 97, 100, 128, 200, 1000, 2301)
    for ranks in (1, 2, 3, 4, 5, 7, 8, 16, 40)
    if ranks <= frames
]


def routes(shards: FrameShards, width: int, anchors: int) -> list[Route]:
    """Each rank's route for the frames around its own and some anchors."""
    shared = anchor_frames(shards.frames, anchors)
    return [
        plan_route(shards, rank, lambda of: [*around(shards, of, width), *shared])
        for rank in range(shards.ranks)
    ]


def around(shards: FrameShards, rank: int, width: int) -> list[int]:
    """Return the frames of other ranks within `width` of a rank's own."""
    own = shards.held(rank)
    near = range(max(0, own.start - width), min(shards.frames, own.stop + width))
    return [frame for frame in near if frame not in own]


def peers(route: Route) -> set[int]:
    """Return the ranks that a rank exchanges frames with."""
    return {peer for peer, _ in route.sends} | {peer for peer, _, _ in route.receives}


def test_every_frame_belongs_to_one_rank_in_order() -> None:
    for frames, ranks in PAIRS:
        shards = FrameShards(frames, ranks)
        assert [i for rank in range(ranks) for i in shards.held(rank)] == list(range(frames)), (frames, ranks)


def test_the_frame_counts_of_ranks_differ_by_at_most_one() -> None:
    for frames, ranks in PAIRS:
        counts = [len(FrameShards(frames, ranks).held(rank)) for rank in range(ranks)]
        assert max(counts) - min(counts) <= 1, (frames, ranks)
        assert min(counts) >= 1


def test_owner_is_the_inverse_of_held() -> None:
    for frames, ranks in PAIRS:
        shards = FrameShards(frames, ranks)
        for rank in range(ranks):
            assert {shards.owner(frame) for frame in shards.held(rank)} == {rank}, (frames, ranks)


@pytest.mark.parametrize(("frames", "ranks"), [(3, 4), (1, 2), (5, 0), (0, 1), (4, -1)])
def test_a_rank_without_a_frame_is_refused(frames: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames cannot be split over {ranks} ranks"):
        FrameShards(frames, ranks)


@pytest.mark.parametrize(("width", "anchors"), [(1, 0), (8, 16), (0, 16), (8, 0), (30, 3)])
def test_a_rank_receives_the_frames_it_expects_in_order(width: int, anchors: int) -> None:
    for frames, ranks in PAIRS:
        if frames > 200:
            continue
        shards = FrameShards(frames, ranks)
        planned = routes(shards, width, anchors)
        for sender, route in enumerate(planned):
            own = shards.held(sender)
            for receiver, other in enumerate(planned):
                sent = [own[position] for position in dict(route.sends).get(receiver, ())]
                parts = [other.wanted[start:stop] for peer, start, stop in other.receives if peer == sender]
                assert len(parts) <= 1
                assert sent == [frame for part in parts for frame in part], (frames, ranks, sender, receiver)


@pytest.mark.parametrize(("width", "anchors"), [(8, 16), (30, 3)])
def test_a_route_fetches_exactly_the_wanted_frames_of_other_ranks(width: int, anchors: int) -> None:
    for frames, ranks in PAIRS:
        if frames > 200:
            continue
        shards = FrameShards(frames, ranks)
        for rank, route in enumerate(routes(shards, width, anchors)):
            own = shards.held(rank)
            wanted = {*around(shards, rank, width), *anchor_frames(frames, anchors)} - set(own)
            assert list(route.wanted) == sorted(wanted)
            assert [i for _, start, stop in route.receives for i in range(start, stop)] == list(
                range(len(route.wanted))
            )
            for peer, start, stop in route.receives:
                assert all(frame in shards.held(peer) for frame in route.wanted[start:stop])
            assert rank not in peers(route)
            assert all(0 <= position < len(own) for _, sent in route.sends for position in sent)


def test_the_halo_is_one_frame_on_each_side_within_the_video() -> None:
    for frames, ranks in PAIRS:
        shards = FrameShards(frames, ranks)
        for rank in range(ranks):
            own = shards.held(rank)
            halo = plan_halo(shards, rank, one_scene(frames))
            assert halo.before == (own.start - 1 if own.start else None)
            assert halo.after == (own.stop if own.stop < frames else None)
            expected = [i for i in (own.start - 1, own.stop) if 0 <= i < frames]
            assert list(halo.route.wanted) == expected, (frames, ranks, rank)


def test_ranks_with_few_frames_fetch_from_beyond_their_neighbours() -> None:
    shards = FrameShards(10, 5)
    route = plan_route(shards, 2, lambda of: around(shards, of, 3))
    assert route.wanted == (1, 2, 3, 6, 7, 8)
    assert [peer for peer, _, _ in route.receives] == [0, 1, 3, 4]
    assert plan_route(shards, 0, lambda of: around(shards, of, 30)).wanted == tuple(range(2, 10))


def test_one_rank_exchanges_nothing() -> None:
    for frames in (1, 2, 16, 100):
        [route] = routes(FrameShards(frames), 8, 16)
        assert route == Route(wanted=(), sends=(), receives=())
        assert peers(route) == set()


def test_anchors_are_the_midpoints_of_equal_spans() -> None:
    assert anchor_frames(160, 16) == tuple(range(5, 160, 10))
    assert anchor_frames(40, 4) == (5, 15, 25, 35)
    assert anchor_frames(7, 2) == (1, 5)
    assert anchor_frames(1, 16) == (0,)


@pytest.mark.parametrize("count", [1, 3, 16, 17])
def test_anchors_are_distinct_frames_and_all_frames_of_a_short_video(count: int) -> None:
    for frames in range(1, 300):
        anchors = anchor_frames(frames, count)
        assert len(set(anchors)) == len(anchors) == min(count, frames)
        assert list(anchors) == sorted(anchors)
        assert anchors[0] >= 0
        assert anchors[-1] < frames
    assert anchor_frames(count, count) == tuple(range(count))
