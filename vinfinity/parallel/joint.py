"""Joint attention: all positions of the attended frames share one softmax, as in diffusion transformers.

Such a model was trained with softmaxes over the keys of T0 frames. So every query attends to the same number of frames
A, by default T0, wherever it is in the video: its local scope N consists of the nearest frames, enough that N and the
anchors G together have A frames. In the middle of a video and away from anchors, these are the `attention.local` frames
on either side; at the ends, and near anchors, the scope reaches further.

Frames have rotary positions, of which only differences matter. Either these are the true distances, even if they exceed
those in training (absolute), or distances outside N are scaled down such that none exceeds T0 - 1 (grouped, after
LongDiff, arXiv 2503.18150, and FreeLOC, arXiv 2603.25209).
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal

from vinfinity.parallel.timeline import Scene, Timeline

Positions = Literal["absolute", "grouped", "auto"]
# with `auto`, distances are grouped in scenes of more than this many times the trained length
GROUPED_BEYOND = 6


def nearest_frames(
    timeline: Timeline, scene: Scene, query: int, anchors: Collection[int], *, attended: int
) -> range:
    """Return the local scope N of a query: consecutive frames; in a loop, possibly numbers beyond its ends.

    These are the nearest frames of its scene, the earlier of two equally near ones first, until they and the anchors
    together have `attended` frames, or the scene has no more.
    """
    own, seen = frozenset(anchors), len(anchors)
    start, stop = query, query + 1
    seen += query not in own

    def away(frame: int) -> float:
        exists = timeline.loop or frame in scene.frames
        return abs(timeline.distance(query, frame)) if exists else math.inf

    while stop - start < len(scene.frames) and seen < attended:
        if away(start - 1) <= away(stop):
            start = added = start - 1
        else:
            added, stop = stop, stop + 1
        seen += timeline.real(added) not in own
    return range(start, stop)


def key_distances(
    timeline: Timeline,
    scene: Scene,
    query: int,
    keys: Sequence[int],
    *,
    near: range,
    rule: Positions,
    trained: int,
) -> tuple[int, ...]:
    """Return the temporal distance of each key from a query, as attention uses it.

    near: the query's local scope. rule: which distances are grouped. trained: T0.
    """
    grouped = rule == "grouped" or (rule == "auto" and scene.length > GROUPED_BEYOND * trained)
    farthest = scene.length // 2 if timeline.loop else scene.length - 1
    around = [timeline.distance(query, key) for key in near] or [0]

    def seen(key: int) -> int:
        distance = timeline.distance(query, key)
        if key in near:
            return distance
        if timeline.loop:
            # take the shorter way around the loop
            distance = (distance + farthest) % scene.length - farthest
        if not grouped or scene.plain:
            return distance
        reach = max(around) if distance > 0 else -min(around)
        return group_distance(distance, reach=reach, farthest=farthest, trained=trained)

    return tuple(map(seen, keys))


def group_distance(distance: int, *, reach: int, farthest: int, trained: int) -> int:
    """Return the grouped distance of a frame outside the local scope.

    reach: how far the local scope extends on the frame's side. farthest: the largest distance in the scene. trained:
    T0. Distances from `reach` to `farthest` are mapped evenly to `reach` to T0 - 1, and rounded up.
    """
    beyond, room = abs(distance) - reach, max(0, trained - 1 - reach)
    grouped = reach + -(-beyond * room // max(1, farthest - reach))
    return min(grouped, abs(distance)) if distance > 0 else -min(grouped, abs(distance))
