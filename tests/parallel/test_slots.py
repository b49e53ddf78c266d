"""Where projections of frames are stored: every key once, nowhere two at a time, and the same on every rank."""

import pytest

from vinfinity.parallel.groups import UNIT
from vinfinity.parallel.scopes import Scopes, plan_attention
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.slots import Ring, Unit
from vinfinity.parallel.spans import merged
from vinfinity.parallel.timeline import Scene, Timeline, one_scene

LOCAL = 8
TIMELINES = {
    "one scene": one_scene(130, anchors=(5, 40, 77)),
    "scenes": Timeline(
        (Scene(range(13), (), True), Scene(range(13, 60), (20, 50)), Scene(range(60, 130), (61,)))
    ),
    "a loop": Timeline((Scene(range(130), (0, 64)),), loop=True),
}


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_slots_follow_from_the_scene_alone(timeline: Timeline, group: int | None) -> None:
    plans = [
        plan_attention(FrameShards(130, ranks, group), rank, Scopes(LOCAL), timeline=timeline)
        for ranks in (1, 2, 5)
        for rank in range(ranks)
    ]
    alone = {block.rows: block for block in plans[0].blocks}
    for plan in plans:
        assert (plan.ring_start, plan.slots) == (plans[0].ring_start, plans[0].slots)
        for block in plan.blocks:
            same = alone[block.rows]
            assert (block.keys, block.key_slots) == (same.keys, same.key_slots)
            assert [unit[::2] for unit in block.units] == [unit[::2] for unit in same.units]


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_a_block_has_a_slot_for_every_key(timeline: Timeline) -> None:
    plan = plan_attention(FrameShards(130), 0, Scopes(LOCAL), timeline=timeline)
    for block in plan.blocks:
        scene = timeline.scenes[timeline.number(block.rows.start)]
        near = range(block.rows.start - LOCAL, block.rows.stop + LOCAL)
        wanted = scene.frames if scene.plain else timeline.within(scene, near)
        count = len(block.anchors)
        assert block.keys[:count] == (() if scene.plain else scene.anchors)
        assert sorted(key for key in block.keys[count:] if key is not None) == [*wanted]
        at = block.key_slots
        for unit in block.units:
            for frame, slot in zip(unit.span, unit.slots(unit.span), strict=True):
                inside = at.start <= slot < at.stop
                assert (block.keys[slot - at.start] if inside else None) in (frame, None)


def test_a_unit_takes_the_slot_of_one_that_is_no_longer_needed() -> None:
    units = [range(start, start + UNIT) for start in range(0, 80, UNIT)]
    covers = [range(start, start + 24) for start in range(0, 56, 8)]
    ring = Ring.of(units, covers, start=3)
    assert ring.units_stored == 3
    placed: dict[int, Unit] = {}
    for cover in covers:
        around = [*ring.around(cover, range(80))]
        new = [unit for unit in around if placed.get(unit.slot) != unit]
        assert len(new) == (1 if placed else 3)
        placed |= {unit.slot: unit for unit in around}
        assert sorted(placed) == [3, 11, 19]
        assert {unit.span for unit in placed.values()} == {unit.span for unit in around}


def test_neighbouring_slots_are_one_slice() -> None:
    assert merged([range(3, 5), range(5, 8), range(0), range(1, 2)]) == [slice(3, 8), slice(1, 2)]
