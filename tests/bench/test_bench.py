"""Benchmarks: counts that are the same on every machine, and timings that cover what they should."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from oracles.wan import save_wan

from vinfinity.bench import report
from vinfinity.bench.decode import measure_decoding, slope
from vinfinity.bench.denoiser import time_denoiser, timed_call
from vinfinity.bench.exchange import count_traffic
from vinfinity.bench.memory import check_footprint
from vinfinity.bench.scaling import measure_scaling
from vinfinity.bench.subjects import find_subject, inner_rank_call
from vinfinity.bench.timing import time_in_turn
from vinfinity.bench.whole import measure_runs
from vinfinity.config import DecodeConfig
from vinfinity.errors import InputError, VinfinityError
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.weights.card import planned_card


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "tiny")


def test_an_inner_rank_rarely_waits_and_sends_half_the_bytes_of_keys_and_values() -> None:
    shape = inner_rank_call(ranks=8, frames=24, size=(512, 320), scopes=Scopes())
    assert shape.latent_size == (40, 64)
    traffic = count_traffic(shape)
    # stages of temporal convolutions, and attentions
    assert traffic.waits == 22 * 4 + 17 * 2
    assert traffic.bytes <= 0.6 * traffic.bytes_with_key_values
    # 8 frames to each neighbour, and 3 anchors (16 over 8 ranks) to ranks that are not near; see the routes
    assert traffic.messages == 122 * 7


def test_a_single_rank_waits_for_nobody() -> None:
    traffic = count_traffic(inner_rank_call(ranks=1, frames=24, size=(64, 64), scopes=Scopes()))
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
    for round_ in figures.rounds:
        for cost in (round_.decoding, round_.encoding, round_.together):
            assert cost.seconds > 0
            assert cost.processor > 0
    assert figures.of_sum < figures.of_larger <= figures.of_decoding
    report.write_json(tmp_path / "new" / "a.json", report.decode_json(figures))
    written = json.loads((tmp_path / "new" / "a.json").read_text())
    assert written["of_larger"] == figures.of_larger
    assert (written["frames"], written["blocks"]["frames"], len(written["rounds"])) == (21, 4, 2)
    assert report.decode_table(figures)[0] == ("video", "21 frames of 48x32")


def test_invalid_decoding_measurements_are_refused(tmp_path: Path) -> None:
    measure = partial(measure_decoding, "mini", frames=2, size=None, rounds=1, device="cpu")
    with pytest.raises(InputError, match=r"decode\.tile: 50 is not a multiple of 64"):
        measure(decoder=None, decode=DecodeConfig(tile=50))
    with pytest.raises(InputError, match=r"decoder: .*config\.json is missing"):
        measure(decoder=tmp_path, decode=DecodeConfig())


def test_records_are_written_as_csv_or_json(tmp_path: Path) -> None:
    records = [{"frames": 16, "seconds": 0.5}, {"frames": 96, "seconds": 2.0}]
    report.write_records(tmp_path / "new" / "a.csv", records)
    assert (tmp_path / "new" / "a.csv").read_text().splitlines() == ["frames,seconds", "16,0.5", "96,2.0"]
    report.write_records(tmp_path / "a.json", records)
    assert json.loads((tmp_path / "a.json").read_text()) == records


@pytest.mark.slow
def test_traced_memory_matches_that_of_a_real_process() -> None:
    check = check_footprint(frames=64, latent=(16, 24))
    assert check.ratio == pytest.approx(1.0, abs=0.15)
    assert check.kept >= 0.9 * check.resident


def test_calls_are_timed_in_turn_and_compared_round_by_round() -> None:
    order: list[str] = []
    times = time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    # one round more, for warming up
    assert order == ["a", "b"] * 4
    assert len(times.seconds["a"]) == 3
    assert times.ratios("a", "a") == [1.0] * 3


def test_a_unet_call_is_timed_in_each_precision(model_folder: Path, tmp_path: Path) -> None:
    subject = find_subject(str(model_folder), size=(32, 32))
    times = time_denoiser(subject, frames=3, dtypes=("fp32", "bf16"), compiled=False, rounds=2, device="cpu")
    measured = [(subject.title(3), times)]
    rows = report.denoiser_table(measured)
    assert [row[0].rpartition(", ")[2] for row in rows[1:]] == ["fp32", "bf16"]
    report.write_json(tmp_path / "unet.json", report.denoiser_json(measured))
    (written,) = json.loads((tmp_path / "unet.json").read_text())
    assert [len(seconds) for seconds in written["seconds"].values()] == [2, 2]


def test_a_call_of_a_transformer_is_timed_by_frames_of_the_video(wan: Path) -> None:
    subject = find_subject(str(wan), size=(32, 16))
    assert subject.title(9) == f"{wan.name}, 9 frames of 3x4x2"
    network = subject.load(torch.float32, "cpu")
    assert timed_call(subject, network, frames=9)().shape == (2, 4, 3, 2, 4)
    times = time_denoiser(subject, frames=9, dtypes=("fp32", "bf16"), compiled=False, rounds=2, device="cpu")
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == {"fp32": 2, "bf16": 2}


def test_wan_of_random_weights_has_the_published_shapes() -> None:
    subject = find_subject("wan")
    assert subject.title(81) == "Wan 2.1 1.3B with random weights, 81 frames of 21x104x60"
    network = subject.load(torch.bfloat16, "meta")
    card = planned_card("wan2.1-1.3b")
    assert (subject.config, subject.geometry) == (card.configs["transformer"], card.geometry)
    assert (subject.text_tokens, subject.trained_frames) == (card.text_length, 21)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(1.42e9, rel=1e-3)
    # the attention of a long video, too
    shape = subject.call_shape(network, shards=FrameShards(40), scopes=subject.scopes)
    assert (shape.dtype, shape.joint, shape.trained_frames) == (torch.bfloat16, "auto", 21)
    assert shape.scopes is not None
    found = {"attention.local": shape.scopes.local, "attention.anchors": shape.scopes.anchors}
    assert found.items() <= dict(card.defaults).items()


def test_scaling_compares_one_rank_with_several(model_folder: Path) -> None:
    times = measure_scaling(str(model_folder), ranks=2, frames=7, rounds=2, device="cpu")
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == {"alone": 2, "together": 2}
    name, text = report.scaling_table(times, ranks=2, frames=7)[0]
    assert name == "video"
    assert text.startswith("7 frames")


def test_whole_runs_are_measured_by_length(model_folder: Path) -> None:
    options = ["size=32x32", "steps=1"]
    short, long = measure_runs((2, 5), options, model=str(model_folder))
    assert (short.frames, long.frames) == (2, 5)
    assert min(short.denoising, short.decoding, short.peak) > 0
    assert len(report.runs_table([short, long])) == 3
    with pytest.raises(VinfinityError, match=r"a run of 3 frames failed: .*stepz"):
        measure_runs((3,), ["stepz=1"], model=str(model_folder))


def test_ranks_share_the_latent_frames_of_a_transformer(wan: Path) -> None:
    """89 frames are 23 latent frames, more than in training."""
    times = measure_scaling(str(wan), ranks=2, frames=89, rounds=1, device="cpu", size=(32, 16))
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == {"alone": 1, "together": 1}


@pytest.mark.slow
def test_compiled_layers_give_the_same_output(model_folder: Path) -> None:
    subject = find_subject(str(model_folder), size=(32, 32))
    plain, compiled = (subject.load(torch.float32, "cpu") for _ in range(2))
    subject.family.compile(compiled)
    expected, output = (timed_call(subject, unet, frames=3)() for unet in (plain, compiled))
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
