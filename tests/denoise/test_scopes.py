"""The temporal context of each timestep: plain attention for short videos, dual scopes by phase for long ones."""

import math

import pytest
import torch

from vinfinity.config import AttentionConfig, Phase
from vinfinity.denoise.scopes import ScheduledContexts
from vinfinity.denoise.selection import Selection, select_all, select_around
from vinfinity.parallel.ranks import Ranks

TRAINED_FRAMES = 16
ATTENTION = AttentionConfig(
    trained_frames=TRAINED_FRAMES,
    local=2,
    anchors=4,
    schedule=(Phase(above=500, local=0.0, anchors=10.0), Phase(above=-1, local=10.0, anchors=0.0)),
)


def contexts(selection: Selection, *, frames: int) -> ScheduledContexts:
    """Return the contexts of the only rank."""
    team = Ranks(device=torch.device("cpu")).team(len(selection.frames), split=False)
    return ScheduledContexts(
        ATTENTION,
        selection,
        [range(frames)],
        loop=False,
        timesteps=range(1000),
        team=team,
        exchange=team.exchange(),
        chunk_bytes=2**20,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("frames", [1, TRAINED_FRAMES])
def test_a_video_of_at_most_the_trained_length_has_plain_attention(frames: int) -> None:
    at = contexts(select_all(frames, seed=0), frames=frames)
    assert all(block.bias is None for block in at(999.0).attention.blocks)
    assert at(999.0) is at(0.0)


def test_a_longer_video_has_one_context_per_phase() -> None:
    at = contexts(select_all(TRAINED_FRAMES + 1, seed=0), frames=TRAINED_FRAMES + 1)
    early, late = at(999.0), at(500.0)
    assert early is at(501.0)
    assert late is at(0.0)
    assert early is not late
    biases = []
    for context in (early, late):
        [block] = context.attention.blocks
        assert block.bias is not None
        biases.append(block.bias)
    # frame 0 sees frames 0 and 1 in its local scope, and frame 2, which is also an anchor
    assert biases[0][0].tolist() != biases[1][0].tolist()
    assert biases[0].isfinite().tolist() == biases[1].isfinite().tolist()


def test_distances_in_a_selection_count_selected_frames_only() -> None:
    selection = select_around(
        100, [50], context=1, anchors=ATTENTION.anchors, trained_frames=TRAINED_FRAMES, seeds=[0] * 100
    )
    assert selection.frames == (12, 37, 49, 50, 51, 62, 87)
    [block] = contexts(selection, frames=100)(999.0).attention.blocks
    assert block.bias is not None
    # frame 12 sees the two frames after it, and the anchors 12, 37, 62 and 87
    attended = [key for key, bias in zip(block.keys, block.bias[0].tolist(), strict=True) if bias > -math.inf]
    assert sorted(key for key in attended if key is not None) == [0, 1, 2, 5, 6]
