"""Runs of a tiny Wan that start from a video, or from a first pass: against diffusers, on ranks, stopped, edited."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanVideoToVideoPipeline
from oracles.command_line import Cli
from oracles.films import frames_of, write_film, write_picture
from oracles.reference import relative_error
from oracles.runs import (
    config_of,
    exit_code,
    latents,
    resumed_config,
    signal_when_exists,
    stop_after_step,
)
from oracles.video import read_video
from oracles.wan import save_wan
from safetensors.torch import save_file

import vinfinity
from vinfinity.config import RunConfig
from vinfinity.errors import Stopped
from vinfinity.media.encode import encode_frames, frame_bytes
from vinfinity.models.wan.family import NETWORKS
from vinfinity.models.wan.vae_config import WanVAEConfig
from vinfinity.parallel.ranks import Ranks
from vinfinity.planning.machines import GPUS
from vinfinity.planning.meter import LiveBytes
from vinfinity.planning.plan import make_plan
from vinfinity.planning.trace import trace_encode
from vinfinity.run import run
from vinfinity.runs.first_pass import CRF, first_pass
from vinfinity.runs.parts import read_manifest
from vinfinity.runs.paths import Destination
from vinfinity.system.signals import Shutdown
from vinfinity.weights.load import empty_encoder, load_encoder

CLOSE = 1e-4
SIZE = (32, 16)
SETTINGS: dict[str, Any] = {"frames": 45, "size": "32x16", "fps": 8, "steps": 6, "sampler": "unipc"}
# the first block of latent frames: the first eight of twelve
BLOCK = "input/frames-000000-000008.safetensors"


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path / "film.mkv", frames_of(45, size=SIZE))


def start_config(wan: Path, out: Path, film: Path, *overrides: str, **flags: object) -> RunConfig:
    return config_of(wan, out, *overrides, **{**SETTINGS, "input.video": str(film), **flags})


# ---- the same as diffusers ----


@pytest.mark.parametrize(
    ("frames", "strength", "settings"),
    [(1, 1.0, {}), (9, 0.6, {"guidance": 5.0}), (13, 0.3, {"steps": 10}), (81, 0.5, {"guidance": 1.0})],
    ids=str,
)
def test_a_short_video_matches_diffusers(
    frames: int,
    strength: float,
    settings: dict[str, Any],
    wan: Path,
    tmp_path: Path,
    record_worst: Callable[[str, float], None],
) -> None:
    steps, guidance = settings.get("steps", 6), settings.get("guidance", 3.0)
    pictures = frames_of(frames, size=SIZE)
    film = write_film(tmp_path / "film.mkv", pictures)
    shape = (1, 4, 1 + (frames - 1) // 4, 2, 4)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    save_file({"noise": noise}, tmp_path / "noise.safetensors")
    given = {"frames": frames, "steps": steps, "guidance": guidance, "negative": "blurry"}
    given |= {"noise_from": str(tmp_path / "noise.safetensors"), "input.strength": strength}
    run(start_config(wan, tmp_path / "a.mp4", film, **given))
    theirs = WanVideoToVideoPipeline.from_pretrained(wan)
    theirs.scheduler = UniPCMultistepScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    reference = theirs(
        video=[picture.astype(np.float32) / 255 for picture in pictures],
        prompt="a red ball",
        negative_prompt="blurry",
        height=SIZE[1],
        width=SIZE[0],
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).frames
    error = relative_error(latents(tmp_path / "a.run")[None], reference)
    assert error <= CLOSE
    record_worst(f"WanVideoToVideoPipeline, {frames} frames, strength {strength}", error)


# ---- ranks, memory ----


def test_any_number_of_ranks_makes_the_same_bits(wan: Path, film: Path, tmp_path: Path) -> None:
    made = {}
    for ranks in (1, 3):
        out = tmp_path / f"{ranks}.mp4"
        run(start_config(wan, out, film, gpus=ranks, steps=4))
        made[ranks] = (
            latents(out.with_suffix(".run")),
            read_manifest(out.with_suffix(".run") / "input").read(range(12)),
        )
    assert all(torch.equal(one, other) for one, other in zip(made[1], made[3], strict=True))


def test_the_last_picture_is_repeated_in_what_decoding_leaves_out(wan: Path, tmp_path: Path) -> None:
    pictures = frames_of(7, size=SIZE)
    longer = np.concatenate([pictures, pictures[-1:], pictures[-1:]])
    found = []
    for name, frames in (("a", pictures), ("b", longer)):
        film = write_film(tmp_path / f"{name}.mkv", frames)
        run(start_config(wan, tmp_path / f"{name}.mp4", film, frames=len(frames)))
        found.append(latents(tmp_path / f"{name}.run"))
    assert torch.equal(*found)
    assert len(read_video(tmp_path / "a.mp4")) == 7


def test_memory_does_not_grow_with_the_video(wan: Path) -> None:
    encoder = load_encoder(wan / "vae", device="cpu", dtype=torch.float32)
    some, peaks = frames_of(50, size=SIZE), []
    for latent_frames in (24, 72):
        blocks = encode_frames(
            encoder,
            lambda frames: (some[frame % 50] for frame in frames),
            latent_frames=range(latent_frames),
            frames=4 * latent_frames - 3,
            latent=(4, 2, 4),
            size=SIZE,
            ranks=Ranks(torch.device("cpu")),
        )
        with LiveBytes("cpu") as live:
            assert sum(len(block[0]) for block in blocks if block is not None) == latent_frames
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("start", [8, 32, 40])
def test_encoding_that_begins_in_the_middle_gives_the_same_bits(start: int, wan: Path) -> None:
    encoder = load_encoder(wan / "vae", device="cpu", dtype=torch.float32)
    pictures = frames_of(50, size=SIZE)
    asked: list[range] = []

    def read(frames: range) -> Any:
        asked.append(frames)
        return (pictures[frame % 50] for frame in frames)

    def encoded(latent_frames: range) -> torch.Tensor:
        blocks = encode_frames(
            encoder,
            read,
            latent_frames=latent_frames,
            frames=4 * 44 - 5,
            latent=(4, 2, 4),
            size=SIZE,
            ranks=Ranks(torch.device("cpu")),
        )
        return torch.cat([block[1] for block in blocks if block is not None], dim=2)

    whole, rest = encoded(range(44)), encoded(range(start, 44))
    assert torch.equal(rest, whole[:, :, start:])
    # 28 latent frames before it, and none after the video's end
    first = max(0, start - 28)
    assert asked == [range(171), range(4 * first - 3 if first else 0, 171)]


def test_plans_have_the_memory_and_the_time_of_encoding(wan: Path, film: Path) -> None:
    plan, alone = (
        make_plan(start_config(wan, Path("x.mp4"), film, device="cuda", gpus=ranks), gpu="RTX 4090")
        for ranks in (2, 1)
    )
    assert plan.memory.encoding is not None
    seconds = plan.seconds(GPUS["RTX 4090"])
    assert 0 < seconds.encoding < seconds.total
    # rank 0 encodes alone
    assert seconds.encoding == alone.seconds(GPUS["RTX 4090"]).encoding


def test_the_published_encoder_takes_no_more_memory_than_the_decoder() -> None:
    config = WanVAEConfig()
    encoder = empty_encoder(NETWORKS["vae"], config)
    traced = trace_encode(encoder, 1, (832, 480), (16, 60, 104))
    assert 3.2e9 < traced.working < 3.6e9 < frame_bytes(config, (60, 104))
    # of one latent frame; decoding it takes 13.6
    assert traced.work.flops == pytest.approx(8.05e12, rel=0.01)


# ---- stopped, resumed, edited ----


def test_a_run_stopped_while_encoding_continues_where_it_was(wan: Path, film: Path, tmp_path: Path) -> None:
    run(start_config(wan, tmp_path / "whole.mp4", film))
    folder = tmp_path / "a.run"
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(folder / BLOCK),
        pytest.raises(Stopped, match=r"stopped after encoding 8 of 12 latent frames"),
    ):
        run(start_config(wan, tmp_path / "a.mp4", film), shutdown=shutdown)
    written = (folder / BLOCK).stat().st_mtime_ns
    run(resumed_config(folder, gpus=2))
    assert torch.equal(latents(folder), latents(tmp_path / "whole.run"))
    assert (folder / BLOCK).stat().st_mtime_ns == written


def test_once_encoded_the_video_is_not_needed_any_more(wan: Path, film: Path, tmp_path: Path) -> None:
    run(start_config(wan, tmp_path / "whole.mp4", film))
    config = start_config(wan, tmp_path / "a.mp4", film, "checkpoint.every=1 steps", steps=12)
    stop_after_step(config, tmp_path / "a.run", step=2)
    film.unlink()
    run(resumed_config(tmp_path / "a.run"))
    assert latents(tmp_path / "a.run").shape == (4, 12, 2, 4)
    assert exit_code("redo", str(tmp_path / "whole.run"), "--frames", "9:17") == 0
    before, after = latents(tmp_path / "whole.run"), latents(tmp_path / "whole-redo.run")
    changed = (after - before).abs().amax((0, 2, 3)) > 0
    assert changed.nonzero().flatten().tolist() == [3, 4]


def test_the_api_takes_the_same_settings(wan: Path, film: Path, tmp_path: Path) -> None:
    run(start_config(wan, tmp_path / "a.mp4", film))
    pipe = vinfinity.Pipeline.from_pretrained(wan, device="cpu", dtype="fp32")
    video = pipe("a red ball", steps=6, input={"video": film})
    assert (len(video.frames), video.size, video.fps) == (45, SIZE, 8)
    assert torch.equal(video.latents[0], latents(tmp_path / "a.run"))


# ---- two passes ----


def test_two_passes_make_what_two_commands_make(wan: Path, tmp_path: Path) -> None:
    flags = {**SETTINGS, "frames": 10}
    run(config_of(wan, tmp_path / "a.mp4", "first_pass.size=16x16", **flags))
    run(config_of(wan, tmp_path / "one.mp4", f"video.crf={CRF}", **{**flags, "size": "16x16"}))
    run(config_of(wan, tmp_path / "two.mp4", **flags, **{"input.video": str(tmp_path / "one.mp4")}))
    assert torch.equal(latents(tmp_path / "a.run" / "first-pass.run"), latents(tmp_path / "one.run"))
    assert torch.equal(latents(tmp_path / "a.run"), latents(tmp_path / "two.run"))


def test_two_passes_resume_in_the_second_one(wan: Path, tmp_path: Path) -> None:
    def config(name: str) -> RunConfig:
        settings = ("first_pass.size=16x16", "first_pass.steps=3", "checkpoint.every=1 steps")
        return config_of(wan, tmp_path / f"{name}.mp4", *settings, **SETTINGS)

    run(config("whole"))
    folder = tmp_path / "a.run"
    with Shutdown().handled() as shutdown, signal_when_exists(folder / BLOCK), pytest.raises(Stopped):
        run(config("a"), shutdown=shutdown)
    assert exit_code("resume", str(folder)) == 0
    assert torch.equal(latents(folder), latents(tmp_path / "whole.run"))


def test_the_first_pass_may_be_a_unet_s_and_the_second_wan_s(
    wan: Path, model_folder: Path, tmp_path: Path
) -> None:
    settings = ("first_pass.size=32x24", f"first_pass.model={model_folder}", "first_pass.steps=3", "shift=5")
    run(config_of(wan, tmp_path / "a.mp4", *settings, **{**SETTINGS, "frames": 21}))
    first = resumed_config(tmp_path / "a.run" / "first-pass.run")
    # the settings of the UNet, not those of Wan
    plain = config_of(model_folder, tmp_path / "b.mp4", size="32x24", frames=21).attention
    assert first.attention == plain
    assert first.shift is None
    assert latents(tmp_path / "a.run" / "first-pass.run").shape[1] == 21
    assert latents(tmp_path / "a.run").shape[1] == 6


def test_the_first_pass_may_have_a_shift_of_its_own(wan: Path, tmp_path: Path) -> None:
    for own, expected in (("null", 5.0), ("3", 3.0)):
        settings = ("shift=5", "first_pass.size=16x16", f"first_pass.shift={own}")
        config = config_of(wan, tmp_path / "a.mp4", *settings, **SETTINGS)
        first = first_pass(config, Destination.of(config).folder)
        assert first is not None
        assert first.shift == expected


# ---- refused ----


@pytest.mark.parametrize("option", ["--first-frame", "--last-frame"])
def test_pictures_are_refused_in_one_line(option: str, cli: Cli, wan: Path, tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "first.png", frames_of(1, size=SIZE)[0])
    flags = ["generate", "-p", "a ball", "--model", str(wan), "--device", "cpu", "--size", "32x16"]
    line = cli.refused(*flags, option, str(picture), "--out", str(tmp_path / "a.mp4"))
    assert f"{option}: {picture} needs a model with latents for each frame" in line
