"""Counts that are the same on every machine: what ranks send, and what a UNet call holds at most."""

import pytest

from vinfinity.insight.exchange import count_traffic
from vinfinity.insight.memory import check_footprint
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


@pytest.mark.slow
def test_traced_memory_is_what_a_process_really_holds() -> None:
    check = check_footprint(frames=64, latent=(16, 24))
    assert check.ratio == pytest.approx(1.0, abs=0.15)
    assert check.kept >= 0.9 * check.resident
