"""Counts that are the same on every machine: what ranks send, and what a UNet call holds at most."""

import gc
import itertools

import pytest
import torch

from vinfinity.insight.exchange import count_traffic
from vinfinity.insight.memory import LiveBytes, trace_footprint
from vinfinity.models.unet import UNetConfig
from vinfinity.parallel.context import Scopes

VIDEOCRAFTER2 = UNetConfig(fps_cond=True)
LATENT = (40, 64)  # 512x320


def test_an_inner_rank_waits_seldom_and_sends_half_of_keys_and_values() -> None:
    traffic = count_traffic(VIDEOCRAFTER2, ranks=8, frames=24, latent=LATENT, scopes=Scopes())
    assert traffic.waits == 22 * 4 + 17 * 2  # stages of temporal convolutions, attentions
    assert traffic.bytes <= 0.6 * traffic.bytes_with_key_values
    # frames sent: 8 to either neighbour and 3 anchors (16 over 8 ranks) to ranks that are not near; see the routes
    assert traffic.messages == 122 * 7


def test_a_single_rank_waits_for_nobody() -> None:
    traffic = count_traffic(VIDEOCRAFTER2, ranks=1, frames=24, latent=(8, 8), scopes=Scopes())
    assert (traffic.waits, traffic.messages, traffic.bytes) == (0, 0, 0)


def test_live_bytes_counts_what_is_alive_and_views_once() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000, dtype=torch.uint8)
        view = a[:10]
        assert live.now == 1000
        del a
        assert live.now == 1000
        del view
        gc.collect()
        assert live.now == 0
        b = torch.zeros(300, dtype=torch.uint8) + 1
        assert live.now == 300
        assert live.peak == 1000
        del b


@pytest.mark.slow
def test_memory_of_videocrafter2_is_linear_in_frames_with_a_small_slope() -> None:
    """At 512x320 in fp16, guidance branches in turn: at most 14 MB a frame, and no more with more frames."""
    sizes = [
        trace_footprint(VIDEOCRAFTER2, ranks=1, frames=frames, latent=LATENT, scopes=Scopes()).working
        for frames in (64, 288, 512)
    ]
    slopes = [(second - first) / 224 for first, second in itertools.pairwise(sizes)]
    assert max(slopes) <= 14e6
    assert slopes[1] <= 1.01 * slopes[0]
