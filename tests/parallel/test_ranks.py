"""Many ranks as real processes that talk through gloo, against one: the number of ranks never changes the video."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from oracles.networks import SHAPES
from oracles.rank_work import Case, call_unets, crash, die, differ
from oracles.reference import (
    DenseScopes,
    configure,
    fill,
    make_dense,
    relative_error,
    save_model,
    tiny_pipeline,
    tiny_unet,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from vinfinity.errors import InputError, RankError, VinfinityError
from vinfinity.media.mp4 import read_video
from vinfinity.models.unet3d.unet import UNetConfig
from vinfinity.parallel.launch import check_ranks, launch
from vinfinity.parallel.place import find_place, first_host, tasks_per_node
from vinfinity.parallel.ranks import Ranks, pick_device
from vinfinity.parallel.scopes import Scopes
from vinfinity.run import run
from vinfinity.runs.parts import read_manifest

CLOSE = 1e-4
TIMEOUT = 60.0
FRAMES = 11  # divisible by neither 2, 3, 4 nor 5
SCOPES = {
    "plain": None,
    "dual": Scopes(local=2, anchors=3, local_bias=0.0, anchor_bias=3.0),
    "wide": Scopes(local=8, anchors=16, local_bias=10.0),
    "no local scope": Scopes(local=2, anchors=4, local_bias=-math.inf),
    "no anchors": Scopes(local=3, anchors=4, anchor_bias=-math.inf),
    "entropy": Scopes(local=2, anchors=3, anchor_bias=1.0, entropy_scaling=True),
}


def cases() -> list[Case]:
    """Every network shape of test_unet.py, and every kind of scopes on the first of them."""
    made = []
    for index, (settings, (_, height, width, batch)) in enumerate(SHAPES.values()):
        theirs = tiny_unet(**settings)
        config = UNetConfig.from_dict(dict(theirs.config))
        x = torch.randn(batch, config.in_channels, FRAMES, height, width)
        text = torch.randn(batch, 5, config.cross_attention_dim)
        for name, scopes in SCOPES.items():
            if index == 0 or name == "dual":
                made.append(Case(config, theirs.state_dict(), x, text, scopes))
    return made


@pytest.fixture(scope="module")
def alone() -> tuple[list[Case], list[Tensor]]:
    torch.manual_seed(0)
    some = cases()
    outputs = call_unets(some, Ranks(device=torch.device("cpu")))
    return some, [output for output in outputs if output is not None]


@pytest.mark.parametrize(
    "ranks", [2, 3, pytest.param(4, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_every_network_says_the_same_on_any_number_of_ranks(
    ranks: int, alone: tuple[list[Case], list[Tensor]], record_worst: Callable[[str, float], None]
) -> None:
    some, expected = alone
    outputs = launch(call_unets, some, gpus=ranks, device="cpu", timeout=TIMEOUT)
    worst = max(relative_error(ours, theirs) for ours, theirs in zip(outputs, expected, strict=True))
    record_worst(f"{len(some)} networks and scopes, {ranks} ranks against 1", worst)
    assert worst <= CLOSE


def test_three_ranks_equal_the_dense_reference(record_worst: Callable[[str, float], None]) -> None:
    theirs = tiny_unet()
    config = UNetConfig.from_dict(dict(theirs.config))
    x, text = torch.randn(2, 4, FRAMES, 6, 5), torch.randn(2, 5, config.cross_attention_dim)
    some = [Case(config, theirs.state_dict(), x, text, scopes) for scopes in SCOPES.values()]
    outputs = launch(call_unets, some, gpus=3, device="cpu", timeout=TIMEOUT)
    worst = 0.0
    for ours, scopes in zip(outputs, SCOPES.values(), strict=True):
        dense = tiny_unet()
        dense.load_state_dict(theirs.state_dict())
        wanted = None
        if scopes is not None:
            wanted = DenseScopes(
                local=scopes.local,
                anchors=scopes.anchors,
                local_bias=scopes.local_bias,
                anchor_bias=scopes.anchor_bias,
                trained_frames=16 if scopes.entropy_scaling else None,
            )
        make_dense(dense, FRAMES, wanted)
        with torch.inference_mode():
            worst = max(worst, relative_error(ours, dense(x, 500, text).sample))
    record_worst("3 ranks against the dense reference", worst)
    assert worst <= CLOSE


def test_norm_of_a_rank_differs_from_that_of_the_video() -> None:
    theirs = fill(tiny_unet())
    config = UNetConfig.from_dict(dict(theirs.config))
    x, text = torch.randn(1, 4, FRAMES, 6, 5), torch.randn(1, 5, config.cross_attention_dim)
    some = [Case(config, theirs.state_dict(), x, text, None, norm) for norm in ("video", "rank")]
    video, rank = launch(call_unets, some, gpus=2, device="cpu", timeout=TIMEOUT)
    alone = call_unets(some, Ranks(device=torch.device("cpu")))
    torch.testing.assert_close(alone[0], alone[1])
    assert relative_error(video, alone[0]) <= CLOSE
    assert relative_error(rank, alone[0]) > 100 * CLOSE


def latents_of(model: Path | str, folder: Path, *overrides: str, ranks: int, **flags: object) -> Tensor:
    """The latents after a whole run on some ranks. The video is folder/ranks.mp4."""
    file = folder / f"{ranks}.safetensors"
    given = {
        "out": str(folder / f"{ranks}.mp4"),
        "save_latents": str(file),
        "device": "cpu",
        "overwrite": True,
    }
    resolved = configure(model, *overrides, **{**given, "gpus": ranks, **flags})
    run(resolved.config)
    return load_file(file)["latents"]


def test_a_whole_run_gives_the_same_latents_on_three_ranks(
    model_folder: Path, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    """20 frames on 3 ranks: fewer frames on a rank than the local scope reaches."""
    settings = {"frames": 20, "steps": 8, "sampler": "sde-dpmsolver++", "guidance": 5.0}
    lossless = ("video.crf=0", "video.pixel_format=yuv444p", "decode.frames=3")
    one = latents_of(model_folder, tmp_path, *lossless, ranks=1, **settings)
    three = latents_of(model_folder, tmp_path, *lossless, "decode.where=ranks", ranks=3, **settings)
    worst = relative_error(three, one)  # a random network's latents are large
    record_worst("whole run, 3 ranks against 1", worst)
    assert worst <= CLOSE
    # decoded by all ranks in turn, and by one: the same pictures, but for what 1e-4 in the latents may round over
    assert read_video(tmp_path / "3.mp4").shape == (20, 32, 32, 3)
    difference = np.abs(
        read_video(tmp_path / "3.mp4").astype(int) - read_video(tmp_path / "1.mp4").astype(int)
    )
    assert difference.max() <= 2  # a step of one in RGB may be two after the way through YUV
    assert difference.mean() < 0.01


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, ("parallel.split_guidance=true",)),
        (3, ("parallel.split_guidance=true", "checkpoint.every=2steps")),
        (2, ("reuse.interval=2",)),
        (5, ("reuse.interval=3", "reuse.depth=1", "parallel.split_guidance=true", "compute.skips=host")),
    ],
    ids=str,
)
def test_how_ranks_share_the_work_does_not_change_the_latents(
    ranks: int, overrides: tuple[str, ...], model_folder: Path, tmp_path: Path
) -> None:
    """20 frames; guidance branches on ranks of their own, in equal and unequal teams, and features that are reused."""
    settings = {"frames": 20, "steps": 6, "sampler": "sde-dpmsolver++", "guidance": 5.0}
    of_the_video = [one for one in overrides if one.startswith("reuse")]
    one = latents_of(model_folder, tmp_path, *of_the_video, ranks=1, **settings)
    several = latents_of(model_folder, tmp_path, *overrides, ranks=ranks, **settings)
    assert relative_error(several, one) <= CLOSE
    if of_the_video:
        exact = latents_of(model_folder, tmp_path, ranks=1, **settings)
        assert relative_error(one, exact) > 1e-3


def test_ranks_on_either_side_of_a_short_clip_choose_alike(model_folder: Path, tmp_path: Path) -> None:
    """65 frames on 2 ranks: one holds no more than both guidance branches take at once, the other does."""
    one = latents_of(model_folder, tmp_path, ranks=1, frames=65, guidance=5.0)
    two = latents_of(model_folder, tmp_path, ranks=2, frames=65, guidance=5.0)
    assert relative_error(two, one) <= CLOSE


@pytest.mark.parametrize("how", ["plain", "in tiles, by another decoder"])
def test_where_frames_are_decoded_does_not_change_the_pictures(
    how: str, model_folder: Path, tmp_path: Path
) -> None:
    settings, flags = ["decode.frames=2"], {"frames": 7}
    if how != "plain":
        fill(AutoencoderTiny()).save_pretrained(tmp_path / "taesd")
        # without decode.frames, a block holds 8: one rank is dealt two, the other one
        settings, flags = ["decode.tile=32"], {"frames": 17, "size": "72x40"}
        flags["decoder"] = str(tmp_path / "taesd")
    videos = {}
    for where in ("rank0", "ranks"):
        (tmp_path / where).mkdir()
        # lossless: x264 does not always take the same decisions on tiny pictures
        settings_of = (*settings, f"decode.where={where}", "video.crf=0", "video.pixel_format=yuv444p")
        latents_of(model_folder, tmp_path / where, *settings_of, ranks=2, **flags)
        videos[where] = read_video(tmp_path / where / "2.mp4")
    assert videos["ranks"].std() > 1
    assert np.array_equal(videos["rank0"], videos["ranks"])


def test_a_video_of_the_trained_length_is_the_base_models_own_on_three_ranks(
    tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    pipeline = tiny_pipeline()
    model = save_model(tmp_path / "model", pipeline)
    noise = torch.randn(1, 4, 16, 4, 5)
    save_file({"noise": noise}, tmp_path / "noise.safetensors")
    settings = {"frames": 16, "size": "40x32", "steps": 8, "guidance": 4.0, "negative": "a blue boat"}
    ours = latents_of(model, tmp_path, ranks=3, noise_from=str(tmp_path / "noise.safetensors"), **settings)
    theirs = pipeline(
        "a red ball",
        negative_prompt="a blue boat",
        num_frames=16,
        width=40,
        height=32,
        num_inference_steps=8,
        guidance_scale=4.0,
        latents=noise,
        output_type="latent",
    ).frames
    worst = relative_error(ours, theirs)
    record_worst("diffusers' pipeline against 3 ranks", worst)
    assert worst <= CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("frames", [53, 37])
def test_the_embedded_model_gives_the_same_latents_on_one_to_five_ranks(
    frames: int, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    """37 frames on 5 ranks: fewer frames on a rank than the local scope reaches."""
    settings = {"frames": frames, "steps": 8, "sampler": "sde-dpmsolver++", "guidance": 6.0}
    prompt = "a red ball bouncing over green grass"
    one = latents_of("mini", tmp_path, ranks=1, prompt=prompt, **settings)
    for ranks in (2, 3, 4, 5):
        worst = (
            (one - latents_of("mini", tmp_path, ranks=ranks, prompt=prompt, **settings)).abs().max().item()
        )
        record_worst(f"mini, {frames} frames, {ranks} ranks against 1, largest difference", worst)
        assert worst <= CLOSE


# ---- what goes wrong ----


def test_a_rank_that_differs_is_named() -> None:
    with pytest.raises(RankError, match="rank 1 differs from rank 0 in its weights") as caught:
        launch(differ, None, gpus=3, device="cpu", timeout=TIMEOUT)
    assert caught.value.exit_code == 3


def test_a_bug_on_one_rank_is_told_with_its_rank_and_place() -> None:
    with pytest.raises(VinfinityError, match=r"rank 1: KeyError: .*rank_work\.py:\d+") as caught:
        launch(crash, None, gpus=2, device="cpu", timeout=TIMEOUT)
    assert caught.value.exit_code == 1


def test_a_killed_rank_is_named() -> None:
    with pytest.raises(RankError, match="rank 1") as caught:
        launch(die, signal.SIGKILL, gpus=3, device="cpu", timeout=TIMEOUT)
    assert caught.value.exit_code == 3


def command(model: Path, folder: Path, *more: str) -> list[str]:
    """A run on the command line that takes longer than any test waits for."""
    options = ["--model", str(model), "--prompt", "a red ball", "--frames", "20", "--size", "64x64"]
    options += ["--steps", "1000", "--device", "cpu", "--out", str(folder / "video.mp4")]
    return [sys.executable, "-m", "vinfinity", "generate", *options, *more]


def started(arguments: list[str]) -> tuple[subprocess.Popen[str], list[int]]:
    """Starts a run on several ranks and waits until it denoises. Returns it and its ranks' process ids, in order."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 60
    ranks: list[int] = []
    while time.monotonic() < deadline and process.poll() is None:
        ranks = [child for child in children(process.pid) if b"spawn_main" in command_line(child)]
        # busy for some seconds: past the start, in the loop
        if len(ranks) >= 2 and all(processor_seconds(rank) > 6 for rank in ranks):
            return process, ranks
        time.sleep(0.2)
    process.kill()
    raise AssertionError(f"the run did not start: {process.communicate()[1]}")


def children(of: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def gone(pids: list[int]) -> bool:
    return not any(b"spawn_main" in command_line(pid) for pid in pids)


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_killed_or_stopped_in_the_loop_ends_all_with_exit_code_3(
    blow: signal.Signals, model_folder: Path, tmp_path: Path
) -> None:
    process, ranks = started(command(model_folder, tmp_path, "--gpus", "3", "parallel.timeout=5"))
    os.kill(ranks[1], blow)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "rank 1 " in said.splitlines()[-1]
    assert gone(ranks)


@pytest.mark.slow
def test_ctrl_c_stops_all_ranks_with_a_checkpoint_and_again_at_once(
    model_folder: Path, tmp_path: Path
) -> None:
    process, ranks = started(command(model_folder, tmp_path, "--gpus", "2"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert re.search(r"stopped after step \d+ of 1000; `vinfinity resume .*video\.run` goes on", said)
    assert gone(ranks)
    [kept] = (tmp_path / "video.run" / "checkpoints").iterdir()
    assert len(read_manifest(kept).parts) == 2

    go_on = [sys.executable, "-m", "vinfinity", "resume", str(tmp_path / "video.run")]
    process, ranks = started(go_on)
    os.kill(ranks[0], signal.SIGSTOP)  # it will not come to the end of a step
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert gone(ranks)


@pytest.mark.slow
def test_ranks_end_with_the_process_that_started_them(model_folder: Path, tmp_path: Path) -> None:
    process, ranks = started(command(model_folder, tmp_path, "--gpus", "2"))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while not gone(ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(ranks)


# ---- where ranks come from ----

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n0"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,1",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_JOB_ID": "12",
}


def test_find_place_reads_torchrun() -> None:
    place = find_place(TORCHRUN)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (3, 8, 1, 2)
    assert (place.launcher, place.address) == ("torchrun", "n0")


def test_find_place_reads_srun() -> None:
    place = find_place(SRUN)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (4, 5, 0, 1)
    assert (place.launcher, place.address) == ("srun", "node003")


def test_find_place_is_none_without_a_launcher() -> None:
    assert find_place({}) is None
    # a batch script knows of its job, but is no step of it
    assert find_place({"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None


@pytest.mark.parametrize(
    "wrong", [{"LOCAL_RANK": "2"}, {"RANK": "8"}, {"WORLD_SIZE": "many"}, {"LOCAL_WORLD_SIZE": "9"}]
)
def test_sizes_that_do_not_go_together_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match="torchrun"):
        find_place({**TORCHRUN, **wrong})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("node[003-007,9]", "node003"),
        ("a1,b2", "a1"),
        ("gpu[1,3]-ib", "gpu1-ib"),
        ("n-[2]", "n-2"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_tasks_per_node_expands_repetitions() -> None:
    assert tasks_per_node("4(x2),3") == [4, 4, 3]


def test_other_ranks_than_the_launcher_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"gpus: 4 is not the 8 ranks that torchrun started"):
        check_ranks(gpus=4, device="cpu", frames=96)
    with pytest.raises(InputError, match=r"more than the 7 frames"):
        check_ranks(gpus=None, device="cpu", frames=7)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("auto", 2), ("cuda", 2)])
def test_gpus_that_are_not_there_are_refused(device: str, gpus: int) -> None:
    with pytest.raises(InputError, match=rf"finds 0 CUDA GPUs for {gpus}; add --device cpu"):
        pick_device(device, local_size=gpus)


def test_a_single_rank_falls_back_to_the_cpu() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected
