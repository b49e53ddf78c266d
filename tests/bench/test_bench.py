"""Counts that are the same on every machine: what ranks send, and what a UNet call holds at most."""

import json
from pathlib import Path

import pytest
import torch

from vinfinity.bench import unet
from vinfinity.bench.decode import decode_table, measure_decoding, slope, write_json
from vinfinity.bench.exchange import count_traffic
from vinfinity.bench.memory import check_footprint
from vinfinity.bench.scaling import measure_scaling, scaling_table
from vinfinity.bench.timing import time_in_turn
from vinfinity.bench.whole import measure_runs, runs_table
from vinfinity.config import DecodeConfig
from vinfinity.errors import InputError, VinfinityError
from vinfinity.models.unet3d.unet import UNetConfig, compile_blocks
from vinfinity.parallel.scopes import Scopes

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


def test_slope_is_that_of_the_line_through_the_points() -> None:
    assert slope([(x, 3.0 * x - 7.0) for x in range(5)]) == pytest.approx(3.0)
    assert slope([(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]) == 0.0
    assert slope([(4.0, 2.0)]) == 0.0


def test_decoding_is_measured_over_all_frames_and_every_block(tmp_path: Path) -> None:
    figures = measure_decoding(
        "mini",
        decoder=None,
        frames=21,
        size=(48, 32),
        rounds=2,
        device="cpu",
        decode=DecodeConfig(frames=4),
    )
    assert [frame for frame, _ in figures.resident] == [0, 4, 8, 12, 16, 20]
    assert all(size > 10**7 for _, size in figures.resident)
    for one in figures.rounds:
        for cost in (one.decoding, one.encoding, one.together):
            assert cost.seconds > 0
            assert cost.processor > 0
    assert figures.of_sum < figures.of_larger <= figures.of_decoding
    write_json(tmp_path / "new" / "a.json", figures)
    kept = json.loads((tmp_path / "new" / "a.json").read_text())
    assert kept["of_larger"] == figures.of_larger
    assert (kept["frames"], kept["blocks"]["frames"], len(kept["rounds"])) == (21, 4, 2)
    assert dict(decode_table(figures))["video"] == "21 frames of 48x32"


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    common = {"frames": 2, "size": None, "rounds": 1, "device": "cpu"}
    with pytest.raises(InputError, match=r"decode\.tile: 50 is no multiple of 32"):
        measure_decoding("mini", decoder=None, decode=DecodeConfig(tile=50), **common)
    with pytest.raises(InputError, match=r"decoder: .*config\.json is missing"):
        measure_decoding("mini", decoder=tmp_path, decode=DecodeConfig(), **common)


@pytest.mark.slow
def test_traced_memory_is_what_a_process_really_holds() -> None:
    check = check_footprint(frames=64, latent=(16, 24))
    assert check.ratio == pytest.approx(1.0, abs=0.15)
    assert check.kept >= 0.9 * check.resident


def test_calls_are_timed_in_turn_and_compared_round_by_round() -> None:
    order: list[str] = []
    times = time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4  # a round to warm up
    assert len(times.seconds["a"]) == 3
    assert times.ratios("a", "a") == [1.0] * 3


def test_a_unet_call_is_timed_in_each_precision(model_folder: Path, tmp_path: Path) -> None:
    shape = unet.shape_of(str(model_folder), frames=3, size=(32, 32))
    times = unet.time_unet(shape, dtypes=("fp32", "bf16"), compiled=False, rounds=2, device="cpu")
    rows = unet.times_table([(shape, times)])
    assert [row[0].rpartition(", ")[2] for row in rows[1:]] == ["fp32", "bf16"]
    unet.write_json(tmp_path / "unet.json", [(shape, times)])
    (kept,) = json.loads((tmp_path / "unet.json").read_text())
    assert [len(seconds) for seconds in kept["seconds"].values()] == [2, 2]


def test_scaling_compares_one_rank_with_several(model_folder: Path) -> None:
    times = measure_scaling(str(model_folder), ranks=2, frames=7, rounds=2, device="cpu")
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == {"alone": 2, "together": 2}
    assert dict(scaling_table(times, ranks=2, frames=7))["video"].startswith("7 frames")


def test_whole_runs_are_measured_against_their_length(model_folder: Path) -> None:
    options = ["size=32x32", "steps=1"]
    short, long = measure_runs((2, 5), options, model=str(model_folder))
    assert (short.frames, long.frames) == (2, 5)
    assert min(short.denoising, short.decoding, short.peak) > 0
    assert len(runs_table([short, long])) == 3
    with pytest.raises(VinfinityError, match=r"a run of 3 frames failed: .*stepz"):
        measure_runs((3,), ["stepz=1"], model=str(model_folder))


@pytest.mark.slow
def test_compiled_layers_say_the_same(model_folder: Path) -> None:
    shape = unet.shape_of(str(model_folder), frames=3, size=(32, 32))
    plain, compiled = (shape.build(torch.float32, "cpu") for _ in range(2))
    compile_blocks(compiled)
    wanted, got = (
        unet.our_call(shape, one, dtype=torch.float32, device="cpu")() for one in (plain, compiled)
    )
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
