"""Previews of running runs: what is in the folder, with any number of ranks, and that the video stays the same."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from oracles.command_line import Cli
from oracles.processes import SECONDS
from oracles.reference import fill
from oracles.runs import config_of, latents, stop_after_step

from vinfinity.denoise.samplers import SAMPLERS, predicted_clean
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.denoise.state import State

SMALL = ("--frames", "20", "--steps", "4", "--size", "32x32", "--device", "cpu")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which maps of colours are kept."""
    folder = tmp_path / "data"
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    return folder / "vinfinity" / "previews"


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def previewed(run: Path) -> list[int]:
    return [event["step"] for event in events(run) if event["event"] == "preview"]


def frames_of_animation(path: Path) -> int:
    """Return the number of frames of an animated WebP: its ANMF chunks (RFC 9649)."""
    return path.read_bytes().count(b"ANMF")


def wait_for_preview(run: Path) -> None:
    """Return a run that is stopped does not wait for a preview in work: do so here."""
    deadline = time.monotonic() + SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith("preview"):
            thread.join(SECONDS)
    while not previewed(run) or (run / "preview").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_with_previews_makes_the_same_video(cli: Cli, tmp_path: Path, kept: Path) -> None:
    plain, run = tmp_path / "plain.mp4", tmp_path / "a.run"
    for arguments in (("--out", str(plain)), ("--out", str(tmp_path / "a.mp4"), "--preview", "3")):
        code, _, _ = cli("generate", "-p", "a red ball", *SMALL, *arguments)
        assert code == 0
    assert previewed(run) == [3]
    assert torch.equal(latents(run), latents(plain.with_suffix(".run")))
    assert frames_of_animation(run / "preview.webp") == 20
    with av.open(str(run / "preview.png")) as sheet:
        [picture] = sheet.decode(video=0)
    assert picture.width > 4 * 32
    [colours] = kept.iterdir()
    written = colours.stat().st_mtime_ns
    assert (
        cli("generate", "-p", "a red ball", *SMALL, "--out", str(tmp_path / "b.mp4"), "--preview", "2")[0]
        == 0
    )
    assert colours.stat().st_mtime_ns == written


def test_a_preview_looks_like_the_video(cli: Cli, tmp_path: Path) -> None:
    """The contact sheet of the step before the last, against that of the video itself."""
    options = ("--frames", "16", "--steps", "10", "--device", "cpu", "--preview", "9")
    out = tmp_path / "a.mp4"
    code, _, _ = cli("generate", "-p", "a red ball bouncing over green grass", *options, "--out", str(out))
    assert code == 0
    preview, video = (
        cells_of_sheet(path) for path in (tmp_path / "a.run" / "preview.png", tmp_path / "a.png")
    )
    assert np.abs(preview - video).mean() < 20


def cells_of_sheet(path: Path) -> np.ndarray:
    """Return the sixteen frames of a contact sheet without the lines between them, (16, 10, 16, 3) floats."""
    with av.open(str(path)) as file:
        [picture] = file.decode(video=0)
    sheet = picture.to_ndarray(format="rgb24").astype(float)
    line = 4
    height, width = ((side - line) // 4 for side in sheet.shape[:2])
    cells = [
        sheet[row * height + line : (row + 1) * height, column * width + line : (column + 1) * width]
        for row in range(4)
        for column in range(4)
    ]
    rows, columns = ((side - line) // count for side, count in ((height, 10), (width, 16)))
    blocks = np.stack(cells)[:, : 10 * rows, : 16 * columns].reshape(16, 10, rows, 16, columns, 3)
    return blocks.mean((2, 4))


def test_a_small_decoder_that_was_chosen_makes_the_previews(cli: Cli, tmp_path: Path, kept: Path) -> None:
    # 16 pixels per position, as the autoencoder of `mini`
    levels = {"encoder_block_out_channels": (8,) * 5, "decoder_block_out_channels": (8,) * 5}
    blocks = {"num_encoder_blocks": (1,) * 5, "num_decoder_blocks": (1,) * 5}
    fill(AutoencoderTiny(**levels, **blocks)).save_pretrained(tmp_path / "taesd")
    options = ("--decoder", str(tmp_path / "taesd"), "--preview", "3", "--out", str(tmp_path / "a.mp4"))
    assert cli("generate", "-p", "a red ball", *SMALL, *options)[0] == 0
    run = tmp_path / "a.run"
    assert not kept.exists()
    assert frames_of_animation(run / "preview.webp") == 20
    with av.open(str(run / "preview.png")) as sheet:
        [picture] = sheet.decode(video=0)
    # four by four frames of the video's own size
    assert picture.width == 4 * 32 + 5 * 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_make_the_preview_of_one_rank(ranks: int, cli: Cli, tmp_path: Path) -> None:
    written = []
    for gpus in (1, ranks):
        out = tmp_path / f"{gpus}.mp4"
        options = ("--preview", "2", "--gpus", str(gpus), "--out", str(out))
        assert cli("generate", "-p", "a red ball", *SMALL, *options)[0] == 0
        # a run ends with its previews, also in processes of their own
        assert previewed(out.with_suffix(".run")) == [2]
        assert not (out.with_suffix(".run") / "preview").exists()
        written.append((out.with_suffix(".run") / "preview.webp").read_bytes())
    assert written[0] == written[1]


def test_a_preview_that_cannot_be_written_is_left_out_with_a_warning(
    cli: Cli, tmp_path: Path, kept: Path
) -> None:
    config = config_of(
        "mini", tmp_path / "a.mp4", "checkpoint.every=1 steps", frames=4, size="32x32", preview=1
    )
    stop_after_step(config, tmp_path / "a.run")
    # or a preview could be written between the two lines below
    wait_for_preview(tmp_path / "a.run")
    (tmp_path / "a.run" / "preview.webp").unlink()
    (tmp_path / "a.run" / "preview.webp").mkdir()
    code, _, err = cli("resume", str(tmp_path / "a.run"))
    assert code == 0
    assert err.count("cannot make a preview") == 1


@pytest.mark.parametrize("problem", [OverflowError("too large"), MemoryError(), EOFError()], ids=repr)
def test_a_problem_that_shows_up_after_the_last_step_is_reported_and_ends_no_run(
    problem: Exception, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        time.sleep(1.0)
        raise problem

    monkeypatch.setattr(np, "save", slow)
    small = ("--frames", "2", "--steps", "2", "--size", "32x32", "--device", "cpu", "--preview", "1")
    code, _, err = cli("generate", "-p", "a red ball", *small, "--out", str(tmp_path / "a.mp4"))
    assert code == 0
    assert err.count(f"cannot make a preview ({type(problem).__name__}: ") == 1
    assert not (tmp_path / "a.run" / "preview").exists()


def test_an_interval_beyond_the_last_step_is_named(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli(
        "generate", "-p", "a red ball", *SMALL, "--preview", "4", "--out", str(tmp_path / "a.mp4")
    )
    assert code == 0
    assert "preview: has no effect: there are only 4 steps" in err
    assert previewed(tmp_path / "a.run") == []


@pytest.mark.parametrize(
    ("name", "prediction"),
    # videocrafter2 predicts noise only
    [("videocrafter2", "epsilon")]
    + [(name, kind) for name in SAMPLERS if name != "videocrafter2" for kind in ("epsilon", "v_prediction")],
)
def test_the_clean_latents_of_a_prediction_are_those_that_imply_it(name: str, prediction: str) -> None:
    sampler = SAMPLERS[name](SchedulerConfig(prediction_type=prediction), 8, 0.0)
    generator = torch.Generator().manual_seed(1)
    x, clean = (torch.randn(1, 4, 3, 2, 2, generator=generator) for _ in range(2))
    for step in range(len(sampler.timesteps)):
        state = State(step, x)
        found = predicted_clean(sampler, state, sampler.implied(state, clean))
        assert (found - clean).abs().max() < 2e-3
