"""Runs that start from a video, or are held to pictures: against diffusers, on several ranks, stopped, edited."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, VideoToVideoSDPipeline
from diffusers.utils.torch_utils import randn_tensor
from oracles.command_line import Cli
from oracles.films import frames_of, write_film, write_picture
from oracles.processes import vinfinity as vinfinity_command
from oracles.reference import relative_error, save_model, tiny_pipeline, tiny_vae
from oracles.runs import (
    config_of,
    events,
    exit_code,
    latents,
    resumed_config,
    signal_when_exists,
    stop_after_step,
    when_exists,
)
from oracles.video import read_video
from safetensors.torch import save_file
from torch import Tensor

import vinfinity
from vinfinity.config import RunConfig
from vinfinity.errors import InputError, Stopped
from vinfinity.media.encode import encode_block
from vinfinity.planning.meter import LiveBytes
from vinfinity.run import run
from vinfinity.runs.parts import read_manifest
from vinfinity.system.signals import Shutdown
from vinfinity.weights.load import load_encoder

TOLERANCE = 1e-4
SIZE = (32, 24)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path / "film.mkv", frames_of(20))


def start_config(model: Path, out: Path, film: Path, *overrides: str, **flags: object) -> RunConfig:
    """Return the settings of a run from a video, which command line and API complete from it."""
    chosen = {"frames": 20, "size": "32x24", "fps": 8, "steps": 10, "input.video": str(film)}
    return config_of(model, out, *overrides, **{**chosen, **flags})


# ---- the same as diffusers ----


def test_the_encoding_half_matches_diffusers(
    tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    reference = tiny_vae(scaling_factor=0.18215)
    reference.save_pretrained(tmp_path / "vae")
    encoder = load_encoder(tmp_path / "vae", device="cpu", dtype=torch.float32)
    assert not hasattr(encoder, "decoder")
    pictures = torch.from_numpy(frames_of(3, size=(40, 24)))
    theirs = reference.encode(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mode() * 0.18215
    ours = encode_block(encoder, pictures, latent=(4, 3, 5))
    error = relative_error(ours[0].transpose(0, 1), theirs)
    assert error <= 1e-5
    record_worst("encode", error)


def test_odd_sizes_are_extended_evenly_where_decoding_cuts(model_folder: Path) -> None:
    encoder = load_encoder(model_folder / "vae", device="cpu", dtype=torch.float32)
    pictures = torch.from_numpy(frames_of(1, size=(29, 21)))
    padded = torch.from_numpy(np.pad(pictures.numpy(), ((0, 0), (1, 2), (1, 2), (0, 0)), mode="edge"))
    assert torch.equal(
        encode_block(encoder, pictures, latent=(4, 3, 4)), encode_block(encoder, padded, latent=(4, 3, 4))
    )


@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        DPMSolverMultistepScheduler(**BETAS),
    ],
    ids=["ddim", "dpmsolver++"],
)
def test_a_short_video_matches_diffusers(
    scheduler: object, strength: float, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    """diffusers is given the mean of the posterior, where it would draw a sample of it."""
    frames, steps = 6, 8
    model = save_model(tmp_path / "model", tiny_pipeline(scheduler))
    pictures = frames_of(frames)
    film = write_film(tmp_path / "film.mkv", pictures)
    noise = randn_tensor((frames, 4, 3, 4), generator=torch.Generator().manual_seed(5))
    save_file({"noise": noise.transpose(0, 1)[None].contiguous()}, tmp_path / "noise.safetensors")
    config = start_config(
        model,
        tmp_path / "a.mp4",
        film,
        frames=frames,
        steps=steps,
        guidance=9.0,
        negative="blurry",
        noise_from=str(tmp_path / "noise.safetensors"),
        **{"input.strength": strength},
    )
    run(config)
    theirs = VideoToVideoSDPipeline.from_pretrained(model)
    theirs.set_progress_bar_config(disable=True)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    clean = theirs.vae.encode(x).latent_dist.mode() * theirs.vae.config.scaling_factor
    reference = theirs(
        "a red ball",
        video=clean[None],
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=9.0,
        negative_prompt="blurry",
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).frames
    error = relative_error(latents(tmp_path / "a.run")[None], reference)
    assert error <= TOLERANCE
    record_worst(f"video to video, {type(scheduler).__name__}, strength {strength}", error)


# ---- ranks, memory ----


def test_any_number_of_ranks_makes_the_same_bits(model_folder: Path, film: Path, tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "last.png", frames_of(1, seed=90)[0])
    made = {}
    for ranks in (1, 2, 3, 5):
        out = tmp_path / f"{ranks}.mp4"
        held = {"input.last_frame": str(picture)}
        run(start_config(model_folder, out, film, gpus=ranks, steps=4, sampler="sde-dpmsolver++", **held))
        folder = out.with_suffix(".run")
        assert [event["folder"] for event in events(folder, "encoded")] == ["input", "pictures"]
        made[ranks] = (
            latents(folder),
            read_manifest(folder / "input").read(range(20)),
        )
    for ranks in (2, 3, 5):
        assert all(torch.equal(one, other) for one, other in zip(made[1], made[ranks], strict=True))


def test_memory_does_not_grow_with_the_video(model_folder: Path, tmp_path: Path) -> None:
    """Ten times the frames are encoded in the same memory."""
    from vinfinity.media.encode import encode_frames
    from vinfinity.media.source import open_video
    from vinfinity.parallel.ranks import Ranks
    from vinfinity.runs.sources import Sources

    encoder = load_encoder(model_folder / "vae", device="cpu", dtype=torch.float32)
    peaks = []
    for count in (200, 2000):
        source = open_video(str(write_film(tmp_path / f"{count}.mkv", frames_of(count))))
        sources = Sources([source], count, source.rate, SIZE, "cover")
        with LiveBytes("cpu") as live:
            encoded = 0
            for block in encode_frames(
                encoder,
                sources.read,
                latent_frames=range(count),
                frames=count,
                latent=(4, 3, 4),
                size=SIZE,
                ranks=Ranks(torch.device("cpu")),
            ):
                assert block is not None
                encoded += len(block[0])
        assert encoded == count
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]


MEASURED = """
import sys
from pathlib import Path
import torch
from vinfinity.media.encode import encode_frames
from vinfinity.media.source import open_video, read_frames
from vinfinity.parallel.ranks import Ranks
from vinfinity.weights.load import load_encoder

source = open_video(sys.argv[1])
count, size = len(source.times), (32, 24)
encoder = load_encoder(Path(sys.argv[2]), device="cpu", dtype=torch.float32)
ranks = Ranks(torch.device("cpu"))
blocks = encode_frames(
    encoder,
    lambda frames: read_frames(source, fps=source.rate, frames=frames, size=size, fit="cover"),
    latent_frames=range(count),
    frames=count,
    latent=(4, 3, 4),
    size=size,
    ranks=ranks,
)
encoded = sum(len(block[0]) for block in blocks)
# getrusage would count the process that started this one, too
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(encoded, int(peak) // 1024)
"""


def test_the_process_does_not_grow_with_the_video(
    model_folder: Path, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    """Peak resident memory with 200 and 2,000 frames of 320x180, 110 KB or more each: 200 MB if they were kept."""
    some = frames_of(50, size=(320, 180))
    peaks = []
    for count in (200, 2000):
        film = tmp_path / f"{count}.mp4"
        frames = np.tile(some, (count // 50, 1, 1, 1))
        write_film(film, frames, codec="libx264", pixel_format="yuv420p", options={"preset": "ultrafast"})
        command = [sys.executable, "-c", MEASURED, str(film), str(model_folder / "vae")]
        encoded, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(encoded) == count
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] <= 20
    record_worst("MiB more for 2,000 frames than for 200", peaks[1] - peaks[0])


# ---- stopped and resumed ----


def uninterrupted(model: Path, film: Path, tmp_path: Path, **flags: object) -> Tensor:
    run(start_config(model, tmp_path / "whole.mp4", film, **flags))
    return latents(tmp_path / "whole.run")


def test_a_run_stopped_while_encoding_continues_where_it_was(
    model_folder: Path, film: Path, tmp_path: Path
) -> None:
    expected = uninterrupted(model_folder, film, tmp_path)
    folder = tmp_path / "a.run"
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(folder / "input" / "frames-000000-000008.safetensors"),
        pytest.raises(Stopped, match=r"stopped after encoding (8|16) of 20 frames"),
    ):
        run(start_config(model_folder, tmp_path / "a.mp4", film), shutdown=shutdown)
    first = folder / "input" / "frames-000000-000008.safetensors"
    written = first.stat().st_mtime_ns
    run(resumed_config(folder, gpus=2))
    assert torch.equal(latents(folder), expected)
    assert first.stat().st_mtime_ns == written


def test_a_run_killed_while_encoding_resumes_to_the_same_bits(
    model_folder: Path, film: Path, tmp_path: Path
) -> None:
    expected = uninterrupted(model_folder, film, tmp_path)
    folder = tmp_path / "a.run"
    command = vinfinity_command(
        "generate", "-p", "a red ball", "--model", str(model_folder), "--device", "cpu"
    )
    command += ["--from", str(film), "--steps", "10", "dtype=fp32", "--out", str(tmp_path / "a.mp4")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with when_exists(folder / "input" / "manifest.json", lambda: os.kill(process.pid, signal.SIGKILL)):
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    before = {file.name: file.stat().st_mtime_ns for file in (folder / "input").glob("frames-*")}
    assert exit_code("resume", str(folder)) == 0
    assert torch.equal(latents(folder), expected)
    # the blocks of whole rounds are not encoded again
    first = "frames-000000-000008.safetensors"
    assert (folder / "input" / first).stat().st_mtime_ns == before[first]


def test_once_encoded_the_video_is_not_needed_any_more(
    model_folder: Path, film: Path, tmp_path: Path
) -> None:
    expected = uninterrupted(model_folder, film, tmp_path)
    config = start_config(model_folder, tmp_path / "a.mp4", film, "checkpoint.every=1 steps")
    stop_after_step(config, tmp_path / "a.run", step=2)
    film.unlink()
    run(resumed_config(tmp_path / "a.run"))
    assert torch.equal(latents(tmp_path / "a.run"), expected)
    assert exit_code("decode", str(tmp_path / "a.run"), "--out", str(tmp_path / "again.mp4")) == 0


def test_a_video_that_changed_while_it_was_encoded_is_refused(
    model_folder: Path, film: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a.run"
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(folder / "input" / "manifest.json"),
        pytest.raises(Stopped),
    ):
        run(start_config(model_folder, tmp_path / "a.mp4", film), shutdown=shutdown)
    write_film(film, frames_of(20, seed=3))
    with pytest.raises(InputError, match="was changed since the run started"):
        run(resumed_config(folder))
    # with --overwrite, it starts over
    run(resumed_config(folder, overwrite=True))
    run(start_config(model_folder, tmp_path / "b.mp4", film))
    assert torch.equal(latents(folder), latents(tmp_path / "b.run"))


def test_damaged_latents_of_the_video_are_encoded_again(
    model_folder: Path, film: Path, tmp_path: Path
) -> None:
    expected = uninterrupted(model_folder, film, tmp_path)
    folder = tmp_path / "a.run"
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(folder / "input" / "frames-000000-000008.safetensors"),
        pytest.raises(Stopped),
    ):
        run(start_config(model_folder, tmp_path / "a.mp4", film), shutdown=shutdown)
    part = folder / "input" / "frames-000000-000008.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    run(resumed_config(folder))
    assert torch.equal(latents(folder), expected)


# ---- edits ----


def test_redo_starts_from_the_same_video_though_that_is_gone(
    model_folder: Path, film: Path, tmp_path: Path
) -> None:
    run(start_config(model_folder, tmp_path / "a.mp4", film, **{"input.strength": 0.3}))
    film.unlink()
    for name in ("a", "a-redo"):
        assert exit_code("redo", str(tmp_path / f"{name}.run"), "--frames", "6:12") == 0
    before, once, twice = (latents(tmp_path / f"{name}.run") for name in ("a", "a-redo", "a-redo-redo"))
    source = read_manifest(tmp_path / "a.run" / "input").read(range(20))
    assert torch.equal(source, read_manifest(tmp_path / "a-redo-redo.run" / "input").read(range(20)))
    for edited in (once, twice):
        changed = (edited - before).abs().amax((0, 2, 3)) > 0
        assert changed.nonzero().flatten().tolist() == [*range(6, 12)]


def test_extend_adds_frames_of_no_video(model_folder: Path, film: Path, tmp_path: Path) -> None:
    run(start_config(model_folder, tmp_path / "a.mp4", film))
    film.unlink()
    assert exit_code("extend", str(tmp_path / "a.run"), "--frames", "+5") == 0
    extended = latents(tmp_path / "a-extend.run")
    assert torch.equal(extended[:, :20], latents(tmp_path / "a.run"))
    assert extended.shape[1] == 25


# ---- pictures ----


@pytest.mark.parametrize("sampler", ["ddim", "sde-dpmsolver++"])
def test_first_and_last_frame_end_as_the_pictures(sampler: str, model_folder: Path, tmp_path: Path) -> None:
    pictures = frames_of(2, seed=50)
    first, last = (write_picture(tmp_path / f"{k}.png", picture) for k, picture in enumerate(pictures))
    held = {"input.first_frame": str(first), "input.last_frame": str(last)}
    flags = {"frames": 24, "size": "32x24", "steps": 4, "sampler": sampler}
    run(config_of(model_folder, tmp_path / "a.mp4", **flags, **held))
    run(config_of(model_folder, tmp_path / "free.mp4", **flags))
    encoder = load_encoder(model_folder / "vae", device="cpu", dtype=torch.float32)
    expected = encode_block(encoder, torch.from_numpy(pictures), latent=(4, 3, 4))[0]
    made, free = latents(tmp_path / "a.run"), latents(tmp_path / "free.run")
    assert torch.equal(made[:, [0, 23]], expected)
    # their neighbours see them
    assert not torch.equal(made[:, 1], free[:, 1])


def test_the_api_takes_the_same_settings(model_folder: Path, film: Path, tmp_path: Path) -> None:
    run(start_config(model_folder, tmp_path / "a.mp4", film))
    pipe = vinfinity.Pipeline.from_pretrained(model_folder, device="cpu", dtype="fp32")
    video = pipe("a red ball", steps=10, input={"video": film})
    assert (len(video.frames), video.size, video.fps) == (20, SIZE, 8)
    assert torch.equal(video.latents[0], latents(tmp_path / "a.run"))
    assert len(read_video(tmp_path / "a.mp4")) == 20


# ---- the command line ----


def generate(model: Path, *arguments: str) -> tuple[str, ...]:
    return ("generate", "-p", "a red ball", "--model", str(model), "--device", "cpu", "--dry-run", *arguments)


def test_frames_size_and_fps_are_those_of_the_video(cli: Cli, model_folder: Path, film: Path) -> None:
    code, out, _ = cli(*generate(model_folder, "--from", str(film), "--steps", "10"))
    assert code == 0
    assert "20 frames of 32x24 at 8 fps" in out
    assert "6 steps" in out
    code, out, _ = cli(*generate(model_folder, "--from", str(film), "--fps", "4"))
    assert "10 frames of 32x24 at 4 fps" in out


def test_concerns_about_the_video_are_shown_before_the_run(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    varying = write_film(
        tmp_path / "varying.mkv", frames_of(5), times=[0, 100, 200, 600, 700], tick=Fraction(1, 1000), fps=10
    )
    hdr = write_film(tmp_path / "hdr.mkv", frames_of(3), pixel_format="yuv420p", color_trc=16)
    for film, expected in ((varying, "has a variable frame rate"), (hdr, "is HDR (PQ)")):
        code, _, err = cli(*generate(model_folder, "--from", str(film)))
        assert code == 0
        assert err.startswith(f"warning: input.video: {film} {expected}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--strength", "0.5"), "--strength: 0.5 has no source video; add --from VIDEO"),
        (("--fit", "cover"), "has nothing to fit"),
        (("--from", "FILM", "--strength", "0"), "0 is not more than 0"),
        (("--from", "FILM", "--strength", "1.5"), "1.5"),
        (("--from", "FILM", "--strength", "nan"), "is not a finite number"),
        (("--from", "FILM", "--frames", "21"), "is more than the 20 frames that film.mkv has at 8 fps"),
        (
            ("--from", "FILM", "--strength", "0.05", "--steps", "10"),
            "leaves none of 10 steps; use at least 0.1",
        ),
        (("--from", "nowhere.mp4"), "--from: nowhere.mp4"),
        (("--first-frame", "FILM"), "use a picture"),
        (("--first-frame", "PICTURE", "--size", "64x64"), "with another aspect ratio than the video's 64x64"),
        (
            ("--first-frame", "PICTURE", "--last-frame", "PICTURE", "-n", "1"),
            "cannot match two pictures",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_used_is_refused(
    arguments: tuple[str, ...], expected: str, cli: Cli, model_folder: Path, film: Path, tmp_path: Path
) -> None:
    picture = write_picture(tmp_path / "a.png", frames_of(1)[0])
    files = {"FILM": str(film), "PICTURE": str(picture)}
    line = cli.refused(*generate(model_folder, *(files.get(argument, argument) for argument in arguments)))
    assert expected.replace("nowhere.mp4", "") in line.replace(str(Path.cwd()), "") or expected in line


def test_a_video_damaged_in_the_middle_is_named_on_all_ranks(model_folder: Path, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mov", frames_of(40), codec="png", pixel_format="rgb24")
    data = bytearray(film.read_bytes())
    half = len(data) // 2
    data[half : half + 400] = bytes(400)
    film.write_bytes(data)
    config = start_config(model_folder, tmp_path / "a.mp4", film, frames=40, gpus=2)
    with pytest.raises(InputError, match=r"input.video: .*film.mov is damaged"):
        run(config)
