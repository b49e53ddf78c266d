"""`vinfinity compare`: PSNR and SSIM as scikit-image computes them, differing settings, paired tests of batches."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from oracles.command_line import Cli
from oracles.synthetic import changed, panning, save, truncate
from oracles.video import read_video
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import vinfinity
from vinfinity.evaluation import compare as comparing


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


def trimmed(path: Path, target: Path, *, frames: int) -> Path:
    """Return a copy whose edit list leaves out the first frames, which are still in the file."""
    with (
        av.open(str(path)) as source,
        av.open(str(target), "w", options={"use_editlist": "1", "avoid_negative_ts": "disabled"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None or packet.pts is None:
                continue
            shift = frames * (packet.duration or 0)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            copy.mux(packet)
    return target


def test_the_lengths_of_trimmed_files_are_those_that_are_shown(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.mp4", panning(48), fps=12)
    shown = save(tmp_path / "shown.mp4", panning(48)[6:], fps=12)
    part = trimmed(whole, tmp_path / "part.mp4", frames=6)
    comparison = vinfinity.compare(whole, part)
    assert [evaluation.frames for evaluation in comparison.evaluations] == [48, 42]
    assert comparison.fidelity == ((None,),)
    [[fidelity]] = vinfinity.compare(shown, part).fidelity
    assert fidelity is not None
    assert fidelity.psnr > 30
    assert len(fidelity.psnr_curve) == 42


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
    assert out.startswith("7 pairs of videos\nleft out: ")
    assert f"left out: {tmp_path / 'fast' / 'more.mp4'}: has no counterpart\n" in out
    assert result["unpaired"] == [str(tmp_path / "fast" / "more.mp4")]


def test_names_of_batches_are_printed_as_they_are(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["[red]", "[/b]"]
    Path("[").mkdir()
    for name in names:
        save(Path(name) / "[bold].mp4", panning(4, height=16, width=16))
    code, out, err = cli("compare", *names)
    assert code == 0, err
    assert all(name in out.splitlines()[1] for name in names)
    code, out, err = cli("compare", *(f"{name}/[bold].mp4" for name in names))
    assert code == 0, err
    assert out.splitlines()[0].split() == ["[red]/[bold].mp4", "b]/[bold].mp4"]


def test_names_that_are_not_utf8_are_escaped_for_people_and_exact_in_json(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad, alone = (os.fsdecode(name) for name in (b"good_\xff.mp4", b"bad_\xff.mp4", b"alone_\xff.mp4"))
    folders = os.fsdecode(b"a_\xff"), os.fsdecode(b"b_\xff\x1b")
    video = save(Path("x.mp4"), panning(4, height=16, width=16)).read_bytes()
    for folder in folders:
        Path(folder).mkdir()
        (Path(folder) / good).write_bytes(video)
        (Path(folder) / bad).write_bytes(b"nothing")
    (Path(folders[0]) / alone).touch()
    code, out, err = cli("compare", *folders)
    assert code == 4, err
    assert out.splitlines()[0] == "1 of 2 pairs of videos"
    assert "left out: bad_\\udcff.mp4: video: 'a_\\udcff/bad_\\udcff.mp4' cannot be read as a video" in out
    assert "left out: a_\\udcff/alone_\\udcff.mp4: has no counterpart" in out
    assert out.splitlines()[3].split()[:2] == ["a_\\udcff", "b_\\udcff\\u001b"]
    assert "b_\\udcff\\u001b: identical to a_\\udcff" in out
    assert "measuring good_\\udcff.mp4: 4 frames" in err
    code, out, _ = cli("compare", *folders, "--json", "--report", "page.html")
    assert code == 4
    found = json.loads(out)
    assert found["pairs"] == [good]
    assert [*found["left_out"]] == [bad]
    assert found["unpaired"] == [f"{folders[0]}/{alone}"]
    assert [group[0]["video"] for group in found["videos"]] == [f"{folder}/{good}" for folder in folders]
    data = json.loads(Path("page.html").read_text().partition('id="data">')[2].partition("</script>")[0])
    assert data["names"] == ["a_\\udcff", "b_\\udcff\\u001b"]
    assert data["pairs"][0]["name"] == "good_\\udcff.mp4"
    assert data["pairs"][0]["links"] == ["a_%FF/good_%FF.mp4", "b_%FF%1B/good_%FF.mp4"]
    assert [line.split(": ")[1] for line in data["left_out"]] == [
        "bad_\\udcff.mp4",
        "a_\\udcff/alone_\\udcff.mp4",
    ]


def batches(folder: Path, *, pairs: int) -> tuple[str, str]:
    """Two folders with videos of equal names, of which the second moves faster."""
    for number in range(pairs):
        for name, speed in (("slow", 1), ("fast", 2)):
            frames = panning(8, height=48, width=64, seed=number, speed=speed + number / 10)
            save(folder / name / f"{number}.mp4", frames)
    return str(folder / "slow"), str(folder / "fast")


def test_a_pair_with_a_damaged_video_is_left_out_on_both_sides(cli: Cli, tmp_path: Path) -> None:
    slow, fast = batches(tmp_path, pairs=5)
    _, out, _ = cli("compare", slow, fast, "--json")
    whole = json.loads(out)
    assert whole["left_out"] == {}
    # one of each batch; one that ends early, and one that cannot be opened
    truncate(tmp_path / "slow" / "1.mp4")
    (tmp_path / "fast" / "3.mp4").write_bytes(b"nothing")
    page = tmp_path / "page.html"
    code, out, err = cli("compare", slow, fast, "--json", "--report", str(page))
    assert code == 4
    result = json.loads(out)
    assert result["pairs"] == ["0.mp4", "2.mp4", "4.mp4"]
    assert sorted(result["left_out"]) == ["1.mp4", "3.mp4"]
    for group, before in zip(result["videos"], whole["videos"], strict=True):
        assert [video["figures"] for video in group] == [before[pair]["figures"] for pair in (0, 2, 4)]
    assert result["tests"][0]["motion.length"]["pairs"] == 3
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert all(line.endswith("; measuring the others") for line in warnings)
    assert err.splitlines()[-1].startswith("error: 2 of 5 pairs of videos cannot be compared, such as ")
    data = json.loads(page.read_text().partition('id="data">')[2].partition("</script>")[0])
    assert len(data["left_out"]) == 2
    assert [pair["name"] for pair in data["pairs"]] == result["pairs"]
    assert all(len(pair["sheets"]) == 2 for pair in data["pairs"])
    code, out, _ = cli("compare", slow, fast)
    assert code == 4
    assert out.startswith("3 of 5 pairs of videos\nleft out: 3.mp4: ")
    assert "left out: 1.mp4: " in out
    comparison = vinfinity.compare(slow, fast)
    assert {*comparison.left_out} == {"1.mp4", "3.mp4"}


def test_batches_of_which_every_pair_is_damaged_are_an_error(cli: Cli, tmp_path: Path) -> None:
    slow, fast = batches(tmp_path, pairs=2)
    truncate(tmp_path / "slow" / "0.mp4")
    truncate(tmp_path / "fast" / "1.mp4")
    code, out, err = cli("compare", slow, fast)
    assert (code, out) == (4, "")
    assert "0.mp4: ends after" in err.splitlines()[-1]
    for number in range(2):
        (tmp_path / "slow" / f"{number}.mp4").write_bytes(b"nothing")
    assert "cannot be read as a video" in cli.refused("compare", slow, fast)


def test_one_of_two_videos_that_is_damaged_is_an_error(cli: Cli, tmp_path: Path) -> None:
    one, two = save(tmp_path / "one.mp4", panning(8)), truncate(save(tmp_path / "two.mp4", panning(8)))
    code, out, err = cli("compare", str(one), str(two))
    assert (code, out) == (4, "")
    assert err.splitlines()[-1].startswith(f"error: {two}: ends after ")


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
    # a slip of the pen is not a video beside a folder
    missing = str(tmp_path / "bathc")
    assert f"compare: {missing} does not exist" in cli.refused("compare", str(tmp_path / "batch"), missing)
    assert f"compare: {missing} does not exist" in cli.refused("compare", missing, str(tmp_path / "batch"))
    assert "has no video of the same name" in cli.refused(
        "compare", str(tmp_path / "batch"), str(tmp_path / "other")
    )
    assert "does not exist" in cli.refused("compare", one, str(tmp_path / "no.mp4"))
    assert "has no effect" in cli.refused("compare", one, one, "--fps", "12")
    assert "has no effect" in cli.refused("compare", one, one, "--prompt", "a cat")


def test_a_report_that_cannot_be_written_is_refused_first(cli: Cli, tmp_path: Path) -> None:
    one = str(save(tmp_path / "one.mp4", panning(4)))
    assert "use a name that ends in .html" in cli.refused(
        "evaluate", one, "--report", str(tmp_path / "page.pdf")
    )
    (tmp_path / "page.html").write_text("mine")
    assert "already exists" in cli.refused("evaluate", one, "--report", str(tmp_path / "page.html"))
    save(tmp_path / "a" / "x.mp4", panning(4))
    save(tmp_path / "b" / "x.mp4", panning(4))
    folders = str(tmp_path / "a"), str(tmp_path / "b")
    assert "already exists" in cli.refused("compare", *folders, "--report", str(tmp_path / "page.html"))
