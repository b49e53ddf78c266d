"""`vinfinity evaluate`: what it prints, its limits, what it takes from a run, and its one line for bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.command_line import Cli
from oracles.synthetic import panning, save, truncate
from oracles.video import read_video

import vinfinity
from vinfinity.config import VideoConfig, choose_format
from vinfinity.errors import InputError
from vinfinity.media.writer import VideoWriter
from vinfinity.runs.folder import RunFolder
from vinfinity.video import Video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("videos") / "pan.mp4", panning(24, speed=2))


def test_a_table_shows_every_figure_and_motion_beside_flicker(cli: Cli, video: Path) -> None:
    code, out, _ = cli("evaluate", str(video), "--every", "8")
    assert code == 0
    assert "24 frames of 160x96, 1.0 s at 24 fps" in out
    lines = [line for line in out.splitlines() if line.startswith("flicker (VBench)")]
    assert len(lines) == 1
    assert "px/frame" in lines[0]
    assert "seam ratio" in out


def test_json_has_figures_curves_and_borders(cli: Cli, video: Path) -> None:
    code, out, _ = cli("evaluate", str(video), "--border", "8", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["frames"] == 24
    assert result["borders"] == [{"frame": 8, "kind": "given"}]
    assert result["figures"]["motion.length"] == pytest.approx(2, rel=0.05)
    assert {len(curve) for curve in result["curves"].values()} == {24}
    assert result["curves"]["difference"][0] is None
    assert result["seams"]["seams"][0]["frame"] == 8


def test_several_videos_stand_beside_each_other_and_many_below(cli: Cli, video: Path, tmp_path: Path) -> None:
    others = [save(tmp_path / f"{number}.mp4", panning(4, seed=number)) for number in range(5)]
    _, out, _ = cli("evaluate", str(video), str(others[0]))
    assert "pan.mp4" in out.splitlines()[0]
    assert "0.mp4" in out.splitlines()[0]
    code, out, _ = cli("evaluate", *map(str, others), "--min-motion", "0.5")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if ".mp4" in line] == [f"{n}.mp4" for n in range(5)]
    _, out, _ = cli("evaluate", str(video), str(others[0]), "--json")
    assert len(json.loads(out)) == 2


@pytest.mark.parametrize("count", [2, 5])
def test_names_are_printed_as_they_are(count: int, cli: Cli, tmp_path: Path) -> None:
    names = ["clip[final].mp4", "b].mp4", "[red]x.mp4", "a:fire:.mp4", "back\\[b].mp4"][-count:]
    paths = [save(tmp_path / "[" / name, panning(4, height=16, width=16)) for name in names]
    code, out, err = cli("evaluate", *map(str, paths))
    assert code == 0, err
    assert all(name in out for name in names)


def test_videos_beyond_a_limit_are_named_with_exit_code_7(cli: Cli, video: Path, tmp_path: Path) -> None:
    still = save(tmp_path / "still.mp4", np.repeat(panning(1), 24, axis=0))
    code, out, err = cli("evaluate", str(video), str(still), "--min-motion", "0.5", "--max-frozen", "50")
    assert code == 7
    assert [line for line in out.splitlines() if line.startswith("limit violated: ")] == [
        f"limit violated: {still}: frozen is 100.0 %, allowed at most 50",
        f"limit violated: {still}: motion is 0.00 px/frame, allowed at least 0.5",
    ]
    assert "1 of 2 videos violates a limit" in err
    assert cli("evaluate", str(video), "--min-motion", "0.5", "--max-frozen", "50")[0] == 0


@pytest.mark.parametrize(
    ("limit", "code"), [("flicker.score>=0.5", 0), ("flicker.score<=0.5", 7), ("motion.moving >= 99", 0)]
)
def test_any_figure_can_be_limited(cli: Cli, video: Path, limit: str, code: int) -> None:
    got, out, _ = cli("evaluate", str(video), "--limit", limit, "--json")
    assert got == code
    assert bool(json.loads(out)["beyond"]) == (code == 7)


def test_a_drift_to_either_side_is_a_drift(cli: Cli, tmp_path: Path) -> None:
    frames = panning(24, speed=0.1).astype(float)
    darker = save(
        tmp_path / "darker.mp4", (frames - np.arange(24)[:, None, None, None]).clip(0).astype(np.uint8)
    )
    assert cli("evaluate", str(darker), "--limit", "drift.brightness<=5")[0] == 7
    assert cli("evaluate", str(darker), "--max-drift", "5")[0] == 7
    assert cli("evaluate", str(darker), "--max-drift", "50")[0] == 0


# ---- runs ----


@pytest.fixture(scope="module")
def run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on two ranks, with a prompt that begins at frame 5 and a scene at frame 8."""
    from oracles.runs import exit_code

    folder = tmp_path_factory.mktemp("run")
    prompts = ["--then", "5", "a blue boat", "prompts[0].blend=0"]
    settings = ["--frames", "12", "--size", "32x32", "--gpus", "2", "--device", "cpu", "steps=2"]
    out = folder / "ball.mp4"
    code = exit_code(
        "generate",
        "-p",
        "a red ball",
        "--model",
        str(model_folder),
        "--out",
        str(out),
        *settings,
        *prompts[:3],
    )
    assert code == 0
    return folder / "ball.run"


@pytest.mark.parametrize("named", ["ball.run", "ball.mp4"])
def test_a_run_knows_its_borders(cli: Cli, run: Path, named: str) -> None:
    code, out, _ = cli("evaluate", str(run.parent / named), "--json")
    assert code == 0
    assert json.loads(out)["borders"] == [{"frame": 5, "kind": "prompt"}, {"frame": 6, "kind": "rank"}]


def test_borders_are_in_the_record(run: Path) -> None:
    record = RunFolder(run).record()
    assert record is not None
    assert record["borders"] == {"ranks": [6], "joins": []}


def test_a_run_writes_its_cheap_figures(run: Path) -> None:
    record = RunFolder(run).record()
    assert record is not None
    frames, latents = record["figures"]["frames"], record["figures"]["latents"]
    assert [seam["frame"] for seam in frames["seams"]] == [6]
    assert [seam["frame"] for seam in latents["seams"]] == [6]
    assert frames["change"] > 0
    assert latents["change"] > 0
    assert {*frames["drift"]} == {"brightness", "sharpness", "saturation"}
    shown = read_video(run.parent / "ball.mp4").astype(float)
    assert frames["change"] == pytest.approx(np.abs(np.diff(shown, axis=0)).mean(), rel=0.1)


def test_borders_of_an_edit_are_its_joins_and_those_it_keeps(cli: Cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "redone.mp4"
    code, _, err = cli("redo", str(run), "--frames", "3:5", "--gpus", "1", "--out", str(out))
    assert code == 0, err
    _, text, _ = cli("evaluate", str(out), "--json")
    assert [(border["frame"], border["kind"]) for border in json.loads(text)["borders"]] == [
        (3, "join"),
        (5, "join"),
        (5, "prompt"),
        (6, "rank"),
    ]


def test_another_video_of_the_same_name_has_none_of_the_runs_borders(
    cli: Cli, run: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "ball.run")
    save(tmp_path / "ball.mp4", panning(7))
    _, out, _ = cli("evaluate", str(tmp_path / "ball.mp4"), "--json")
    assert json.loads(out)["borders"] == []


# ---- bad input ----


def test_bad_videos_are_one_line(cli: Cli, tmp_path: Path) -> None:
    assert "does not exist; check the path" in cli.refused("evaluate", str(tmp_path / "no.mp4"))
    (tmp_path / "text.mp4").write_text("not a video")
    assert "cannot be read as a video" in cli.refused("evaluate", str(tmp_path / "text.mp4"))
    (tmp_path / "empty").mkdir()
    assert "000000.png" in cli.refused("evaluate", str(tmp_path / "empty"))
    one = save(tmp_path / "one.mp4", panning(1))
    assert "has one frame only" in cli.refused("evaluate", str(one))


def test_a_folder_with_videos_says_how_to_name_them(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "batch" / "one.mp4", panning(4))
    message = cli.refused("evaluate", str(tmp_path / "batch"))
    assert "batch is a folder with videos, such as one.mp4; name them one by one, as " in message
    monkeypatch.chdir(tmp_path)
    for here in (".", "", "batch/..", "/"):
        assert "is a folder" in cli.refused("evaluate", here)


def test_the_current_folder_can_be_a_video(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VideoWriter(
        tmp_path / "shots", choose_format("shots/", VideoConfig()), width=64, height=48, fps=8, metadata={}
    ) as writer:
        for frame in panning(4, height=48, width=64):
            writer.write(frame)
    monkeypatch.chdir(tmp_path / "shots")
    code, out, _ = cli("evaluate", ".", "--fps", "8")
    assert code == 0
    assert "4 frames of 64x48, 0.5 s at 8 fps" in out


def test_sound_without_pictures_is_no_video(cli: Cli, tmp_path: Path) -> None:
    from oracles.video import tone

    assert "has no video stream" in cli.refused("evaluate", str(tone(tmp_path / "a.wav", seconds=0.1)))


def test_a_run_without_its_video_says_how_to_make_it(cli: Cli, run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "ball.run")
    message = cli.refused("evaluate", str(tmp_path / "ball.run"))
    assert f"is without its video ball.mp4; `vinfinity decode {tmp_path / 'ball.run'}` makes it" in message


@pytest.fixture
def truncated(tmp_path: Path) -> Path:
    """Return a video whose last two thirds are zeros."""
    frames = np.random.default_rng(0).integers(0, 256, (24, 96, 160, 3), dtype=np.uint8)
    whole = save(tmp_path / "noise.mp4", frames)
    data = bytearray(whole.read_bytes())
    data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
    whole.write_bytes(data)
    return whole


def test_a_truncated_video_is_an_error_of_its_file(cli: Cli, truncated: Path) -> None:
    code, out, err = cli("evaluate", str(truncated))
    assert code in (2, 4)
    assert out == ""
    assert err.startswith("error: ")


def test_a_truncated_video_does_not_hide_the_others(cli: Cli, video: Path, truncated: Path) -> None:
    code, out, err = cli("evaluate", str(truncated), str(video), "--json")
    assert code == 4
    assert [one["video"] for one in json.loads(out)] == [str(video)]
    warning, *_, error = err.splitlines()
    assert warning.startswith("warning: ")
    assert warning.endswith("; measuring the others")
    assert error.startswith(f"error: 1 of 2 videos cannot be measured, such as {truncated}")


def test_a_video_that_ends_early_is_not_measured_as_a_shorter_one(cli: Cli, tmp_path: Path) -> None:
    path = truncate(save(tmp_path / "short.mp4", panning(24)))
    message = cli.refused("evaluate", str(path), code=4)
    assert message.startswith(f"{path}: ends after ")
    assert message.endswith(" of 24 frames")


def test_files_that_are_no_videos_do_not_hide_the_others(
    cli: Cli, run: Path, video: Path, tmp_path: Path
) -> None:
    import shutil

    (tmp_path / "text.mp4").write_text("not a video")
    one = save(tmp_path / "one.mp4", panning(1))
    shutil.copytree(run, tmp_path / "ball.run")
    page = tmp_path / "page.html"
    bad = [str(tmp_path / "text.mp4"), str(one), str(tmp_path / "ball.run")]
    code, out, err = cli("evaluate", *bad, str(video), "--json", "--report", str(page))
    assert code == 4
    assert [result["video"] for result in json.loads(out)] == [str(video)]
    assert err.count("; measuring the others") == 3
    assert err.splitlines()[-1].startswith("error: 3 of 4 videos cannot be measured, such as video: ")
    for name in bad:
        assert f"left out: {name}: " in page.read_text()
    # a path that is not there is a slip of the pen
    assert "does not exist" in cli.refused("evaluate", str(video), str(tmp_path / "no.mp4"))
    code, out, err = cli("evaluate", *bad)
    assert (code, out) == (4, "")
    assert "3 of 3 videos cannot be measured" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--border", "0"], "give frames from 1 to 23"),
        (["--border", "24"], "is not inside the video, which has 24 frames"),
        (["--border", "x"], "is not a frame"),
        (["--border", "08"], "is not a frame"),
        (["--every", "24"], "makes no border"),
        (["--limit", "motion"], "is not a limit"),
        (["--limit", "motion.lenght<=3"], "did you mean motion.length"),
        (["--every", "1"], "makes every pair of frames a border; give a number from 2 to 23"),
        (["--limit", "drift.sharpness>=-10"], "is a negative drift; a drift to either side counts: write "),
        (["--limit", "drift.brightness<=-3"], "write drift.brightness<=3"),
        (["--limit", "consistency.subject_long>=0.9"], "consistency.subject_long>=0.9 needs --dino"),
        (["--limit", "consistency.background>=0.9"], "consistency.background>=0.9 needs --clip"),
        (["--limit", "consistency.prompt>=0.2"], "consistency.prompt>=0.2 needs --clip"),
        (["--limit", "consistency.prompt>=0.2", "--clip", "clip"], "needs --prompt"),
        (["--max-drift", "-1"], "is not between 0"),
        (["--prompt", "a cat"], "prompt: a cat has no effect without CLIP; name its weights by --clip"),
        (
            ["--device", "cuda"],
            "device: cuda has no effect without CLIP or DINO; name their weights by --clip",
        ),
        (["--overwrite"], "--overwrite: true has no effect without a report; add --report FILE"),
        (["--fps", "12"], "fps: 12 is for folders of PNG, and has no effect on "),
    ],
)
def test_bad_options_are_one_line(cli: Cli, video: Path, arguments: list[str], expected: str) -> None:
    assert expected in cli.refused("evaluate", str(video), *arguments)


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--overwrite"]])
def test_compare_refuses_options_without_effect(cli: Cli, video: Path, arguments: list[str]) -> None:
    assert "has no effect without" in cli.refused("compare", str(video), str(video), *arguments)


def test_a_rate_that_python_gives_is_refused_where_it_has_no_effect(video: Path) -> None:
    result = Video(panning(4, height=16, width=16), torch.zeros(1, 4, 4, 2, 2), 8, {})
    for given, name in ((video, str(video)), (result, "video")):
        with pytest.raises(InputError, match=rf"^fps: 30 is for folders of PNG, and has no effect on {name}"):
            vinfinity.evaluate(given, fps=30)
    assert vinfinity.evaluate(result, fps=8).fps == vinfinity.evaluate(result).fps == 8
    assert vinfinity.evaluate(result.frames, fps=30).fps == 30


@pytest.mark.parametrize("package", ["cv2", "scenedetect"])
def test_a_missing_extra_is_one_line_with_the_install_command(
    cli: Cli, video: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = cli.refused("evaluate", str(video))
    assert message.endswith(
        f"needs the package {package}, which is not installed; pip install '.[evaluate]' in a clone of vinfinity"
    )


def test_a_folder_of_png_is_a_video(cli: Cli, tmp_path: Path) -> None:
    frames = panning(8, speed=2)
    with VideoWriter(
        tmp_path / "shots", choose_format("shots/", VideoConfig()), width=160, height=96, fps=8, metadata={}
    ) as writer:
        for frame in frames:
            writer.write(frame)
    code, out, _ = cli("evaluate", str(tmp_path / "shots"), "--json")
    assert code == 0
    assert json.loads(out)["frames"] == 8
    assert json.loads(out)["figures"]["motion.length"] == pytest.approx(2, rel=0.05)
