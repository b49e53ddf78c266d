"""`vinfinity compare`: PSNR and SSIM as scikit-image computes them, differing settings, paired tests of batches."""

import json
from pathlib import Path

import numpy as np
import pytest
from oracles.command_line import Cli
from oracles.synthetic import changed, panning, save
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import vinfinity
from vinfinity.evaluation import compare as comparing
from vinfinity.media.mp4 import read_video


@pytest.mark.parametrize("size", [(96, 160), (33, 51), (7, 7)])
def test_ssim_is_scikit_images(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    one = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    other = (one * 0.7 + generator.integers(0, 60, (*size, 3))).astype(np.uint8)
    expected = structural_similarity(one, other, channel_axis=2, data_range=255)
    assert comparing.structural_similarity(one, other) == pytest.approx(expected, abs=1e-9)
    assert comparing.structural_similarity(one, one) == pytest.approx(1)


def test_ssim_of_smaller_frames_is_none_of_a_number() -> None:
    tiny = np.zeros((6, 9, 3), np.uint8)
    assert np.isnan(comparing.structural_similarity(tiny, tiny))


def test_psnr_and_ssim_of_videos_are_scikit_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(8, 96, 160, 3)) * 6
    one = save(tmp_path / "one.mp4", panning(8))
    two = save(tmp_path / "two.mp4", changed(panning(8), lambda t, frame: frame + noise[t]))
    comparison = vinfinity.compare(one, two)
    [[fidelity]] = comparison.fidelity
    assert fidelity is not None
    a, b = read_video(one), read_video(two)
    assert fidelity.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    each = [structural_similarity(x, y, channel_axis=2, data_range=255) for x, y in zip(a, b, strict=True)]
    assert fidelity.ssim == pytest.approx(np.mean(each), abs=1e-9)
    assert fidelity.ssim_curve == pytest.approx(np.array(each), abs=1e-9)


def test_equal_videos_are_identical_and_json_holds_no_infinity(cli: Cli, tmp_path: Path) -> None:
    one, two = (save(tmp_path / f"{name}.mp4", panning(6)) for name in ("one", "two"))
    code, out, _ = cli("compare", str(one), str(two))
    assert code == 0
    assert "two.mp4: identical to one.mp4" in out
    _, out, _ = cli("compare", str(one), str(two), "--json")
    [[fidelity]] = json.loads(out, parse_constant=lambda name: pytest.fail(name))["fidelity"]
    assert fidelity["identical"]
    assert fidelity["psnr"] is None


def test_videos_of_other_lengths_are_compared_without_psnr(cli: Cli, tmp_path: Path) -> None:
    one, two = save(tmp_path / "one.mp4", panning(6)), save(tmp_path / "two.mp4", panning(8))
    code, out, _ = cli("compare", str(one), str(two))
    assert code == 0
    assert "two.mp4: no PSNR and SSIM to one.mp4, since lengths differ" in out
    assert "motion" in out


def test_batches_are_paired_by_name_and_tested(cli: Cli, tmp_path: Path) -> None:
    for number in range(7):
        save(tmp_path / "slow" / f"{number}.mp4", panning(8, seed=number, speed=1 + number / 10))
        save(tmp_path / "fast" / f"{number}.mp4", panning(8, seed=number, speed=2 + number / 10))
    save(tmp_path / "fast" / "more.mp4", panning(8))
    code, out, _ = cli("compare", str(tmp_path / "slow"), str(tmp_path / "fast"), "--json")
    assert code == 0
    result = json.loads(out)
    assert result["pairs"] == [f"{number}.mp4" for number in range(7)]
    test = result["tests"][0]["motion.length"]
    assert test["pairs"] == 7
    assert test["mean"] == pytest.approx(1, abs=0.05)
    assert test["low"] <= test["mean"] <= test["high"]
    # all 7 differences are positive: two of the 128 choices of signs are as extreme
    assert test["p"] == pytest.approx(2 / 128)
    assert result["tests"][0]["cuts.count"]["p"] == 1
    _, out, _ = cli("compare", str(tmp_path / "slow"), str(tmp_path / "fast"))
    assert "7 pairs of videos" in out


# ---- bad input ----


def test_bad_comparisons_are_one_line(cli: Cli, tmp_path: Path) -> None:
    one = str(save(tmp_path / "one.mp4", panning(4)))
    small = str(save(tmp_path / "small.mp4", panning(4, height=48, width=64)))
    assert "name two or more" in cli.refused("compare", one)
    message = cli.refused("compare", one, small)
    assert f"{small} has frames of 64x48, and {one} of 160x96; compare videos of one size" in message
    (tmp_path / "batch").mkdir()
    (tmp_path / "other").mkdir()
    assert "compare folders with folders" in cli.refused("compare", one, str(tmp_path / "batch"))
    assert "has no video of the same name" in cli.refused(
        "compare", str(tmp_path / "batch"), str(tmp_path / "other")
    )
    assert "does not exist" in cli.refused("compare", one, str(tmp_path / "no.mp4"))


def test_a_report_that_cannot_be_written_is_refused_first(cli: Cli, tmp_path: Path) -> None:
    one = str(save(tmp_path / "one.mp4", panning(4)))
    assert "let it end in .html" in cli.refused("evaluate", one, "--report", str(tmp_path / "page.pdf"))
    (tmp_path / "page.html").write_text("mine")
    assert "already exists" in cli.refused("evaluate", one, "--report", str(tmp_path / "page.html"))
    save(tmp_path / "a" / "x.mp4", panning(4))
    save(tmp_path / "b" / "x.mp4", panning(4))
    folders = str(tmp_path / "a"), str(tmp_path / "b")
    assert "already exists" in cli.refused("compare", *folders, "--report", str(tmp_path / "page.html"))
