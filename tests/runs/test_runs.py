"""Runs that end before they are done: what they keep, and that going on gives the video of an uninterrupted run."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.reference import configure
from PIL import Image
from torch import Tensor

from vinfinity.cli import main
from vinfinity.config import RunConfig, parse_interval, to_yaml
from vinfinity.decode_again import decode_again
from vinfinity.denoise.samplers import State
from vinfinity.denoise.selection import Selection, select_all
from vinfinity.errors import BusyError, DamagedError, InputError, OutputError, Stopped, VinfinityError
from vinfinity.job import prepare
from vinfinity.media.mp4 import read_metadata, read_video
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.votes import Votes
from vinfinity.run import run
from vinfinity.runs.checkpoints import Checkpoints
from vinfinity.runs.folder import RunFolder, find_run
from vinfinity.runs.parts import Parts, read_manifest, save_whole, write_manifest, write_part
from vinfinity.runs.paths import Destination
from vinfinity.runs.start import edited, how_to_start, load_run, was_restarted
from vinfinity.system.progress import Progress
from vinfinity.system.signals import Shutdown

CPU = torch.device("cpu")
STEPS = 12  # enough that a signal comes before the last


def config_of(model: Path | str, out: Path, *overrides: str, **flags: Any) -> RunConfig:
    return configure(
        model, *overrides, **{"out": str(out), "device": "cpu", "dtype": "fp32", "steps": STEPS, **flags}
    ).config


def latents(folder: Path) -> Tensor:
    parts = read_manifest(folder / "latents")
    return parts.read(range(parts.frames))


@contextlib.contextmanager
def signalled(path: Path, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """Sends this process a signal when `path` is there."""

    def watch() -> None:
        while not path.exists() and not over.is_set():
            time.sleep(0.0005)
        if not over.is_set():
            os.kill(os.getpid(), number)

    over = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def stopped(config: RunConfig, folder: Path, *, at: int = 3, number: signal.Signals = signal.SIGTERM) -> str:
    """What a run says that is asked to end at a step."""
    due = folder / "checkpoints" / f"step-{at:04d}" / "manifest.json"
    with signalled(due, number), pytest.raises(Stopped) as raised:
        run(config, handle_signals=True)
    assert raised.value.exit_code == 75
    return raised.value.message


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def start_of(config: RunConfig) -> str:
    return how_to_start(config, Destination.of(config))


def going_on(folder: Path) -> RunConfig:
    return load_run(find_run(folder), overrides=[], flags={"resume": True}).config


# ---- going on ----


@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        ("ddim", "eta=0.7"),
        ("dpmsolver++", "eta=0"),
        ("sde-dpmsolver++", "eta=0"),
        ("videocrafter2", "eta=0.5"),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_very_same_latents(
    sampler: str, more: str, model_folder: Path, tmp_path: Path
) -> None:
    whole, parted = (
        config_of(model_folder, tmp_path / f"{name}.mp4", more, "checkpoint.every=1 steps", sampler=sampler)
        for name in ("whole", "parted")
    )
    run(whole)
    said = stopped(parted, tmp_path / "parted.run")
    assert f"; `vinfinity resume {tmp_path / 'parted.run'}` resumes the run" in said
    assert not (tmp_path / "parted.mp4").exists()
    assert start_of(going_on(tmp_path / "parted.run")) == "resume"
    run(going_on(tmp_path / "parted.run"))
    assert torch.equal(latents(tmp_path / "parted.run"), latents(tmp_path / "whole.run"))
    assert read_video(tmp_path / "parted.mp4").shape == (3, 32, 32, 3)
    [resumed] = events(tmp_path / "parted.run", "resumed")
    steps = [event["step"] for event in events(tmp_path / "parted.run", "checkpoint")]
    assert steps == list(range(1, len(steps) + 1))  # none was computed twice
    assert len(steps) >= STEPS - 1
    assert resumed["step"] in steps
    assert start_of(going_on(tmp_path / "parted.run")) == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_has_a_checkpoint_written_whatever_the_interval(
    number: signal.Signals, model_folder: Path, tmp_path: Path
) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=2 steps", steps=40)
    before = signal.getsignal(number)
    stopped(config, tmp_path / "a.run", at=4, number=number)
    assert signal.getsignal(number) is before
    steps = [event["step"] for event in events(tmp_path / "a.run", "checkpoint")]
    assert 4 < steps[-1] < 40
    assert sorted(path.name for path in (tmp_path / "a.run" / "checkpoints").iterdir()) == [
        f"step-{step:04d}" for step in steps[-2:]
    ]


def test_ctrl_c_again_ends_a_run_at_once() -> None:
    shutdown = Shutdown()
    with shutdown.handled(), shutdown.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.requested == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert shutdown.interrupted_again


def test_a_run_stopped_between_reused_features_ends_at_the_next_whole_step(tmp_path: Path) -> None:
    shutdown = Shutdown()
    shutdown.requested = signal.SIGTERM
    saved = kept(tmp_path, every="never", reuse_interval=3, shutdown=shutdown)
    written = [
        saved.after(State(step=step, x=torch.zeros(1, 4, 6, 2, 2)), Votes([saved.vote(True)]))
        for step in (1, 2, 3)
    ]
    assert written == [False, False, True]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0003"]


@pytest.mark.slow
def test_two_ranks_then_three_then_one_give_the_latents_of_one(tmp_path: Path) -> None:
    flags = {"frames": 23, "sampler": "sde-dpmsolver++", "steps": 9, "size": "64x48"}
    run(config_of("mini", tmp_path / "one.mp4", **flags))
    config = config_of("mini", tmp_path / "a.mp4", "checkpoint.every=3 steps", gpus=2, **flags)
    folder = tmp_path / "a.run"
    with (
        pytest.raises(VinfinityError, match="stopped after step"),
        signalled(folder / "checkpoints" / "step-0003" / "manifest.json"),
    ):
        run(config, handle_signals=True)
    shutil.copytree(folder / "checkpoints", tmp_path / "kept")
    seen = {str(part.stop) for part in read_manifest(next((tmp_path / "kept").iterdir())).parts}
    assert seen == {"11", "23"}
    with (
        pytest.raises(VinfinityError, match="stopped after step"),
        signalled(folder / "checkpoints" / "step-0006" / "manifest.json"),
    ):
        run(
            load_run(find_run(folder), overrides=[], flags={"resume": True, "gpus": 3}).config,
            handle_signals=True,
        )
    run(load_run(find_run(folder), overrides=[], flags={"resume": True, "gpus": 1}).config)
    assert (latents(folder) - latents(tmp_path / "one.run")).abs().max() <= 1e-4


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ranks_end_with_a_launcher_that_is_killed_while_they_start(
    model_folder: Path, tmp_path: Path
) -> None:
    options = ["--model", str(model_folder), "--prompt", "a", "--device", "cpu", "--gpus", "2"]
    command = [sys.executable, "-m", "vinfinity", "generate", *options, "--out", str(tmp_path / "a.mp4")]
    launcher = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def running(process: int) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{process}/cmdline").read_text()
        return ""

    ranks: list[int] = []
    while len(ranks) < 2:
        assert launcher.poll() is None
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        ranks = [int(child) for child in children if "spawn_main" in running(int(child))]
        time.sleep(0.001)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 60
    while any(running(rank) for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(running(rank) for rank in ranks)


@pytest.mark.slow
def test_torchrun_restarts_ranks_into_the_run_they_had_begun(tmp_path: Path) -> None:
    flags = [
        "--prompt",
        "a red ball",
        "--frames",
        "20",
        "--size",
        "64x48",
        "--steps",
        "30",
        "--device",
        "cpu",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    folder = tmp_path / "a.run"
    command = [*torchrun, "-m", "vinfinity", "generate", *flags, "--out", str(tmp_path / "a.mp4")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "checkpoint.every=5 steps"], stderr=subprocess.PIPE, env=environment
    )
    while not (folder / "checkpoints" / "step-0010" / "manifest.json").exists() and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"generate" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said.decode()
    assert events(folder, "resumed")[0]["step"] >= 10
    with pytest.raises(SystemExit):
        main(["generate", *flags, "--out", str(tmp_path / "whole.mp4")])
    assert (latents(folder) - latents(tmp_path / "whole.run")).abs().max() <= 1e-4


# ---- damage ----


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_used(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(config_of(model_folder, tmp_path / "whole.mp4"))
    stopped(config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=1 steps"), tmp_path / "a.run")
    for file in ("frames-000000-000003.safetensors", "manifest.json"):
        for damage in (cut, flip, Path.unlink):
            folder = tmp_path / f"{damage.__name__}-{file}.run"
            shutil.copytree(tmp_path / "a.run", folder)
            older, newest = sorted((folder / "checkpoints").iterdir())
            damage(newest / file)
            caplog.clear()
            run(going_on(folder))
            said = " ".join(caplog.text.split())
            # without a manifest it is what a run leaves that is killed while it writes
            if (file, damage) != ("manifest.json", Path.unlink):
                assert "WARNING" in said
                assert str(newest) in said
                assert str(newest) in events(folder, "damaged")[0]["message"]
            assert events(folder, "resumed")[0]["step"] == int(older.name.removeprefix("step-"))
            assert torch.equal(latents(folder), latents(tmp_path / "whole.run"))


def test_damaged_latents_are_computed_again_from_what_is_left(model_folder: Path, tmp_path: Path) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", steps=4)
    run(config)
    first = latents(tmp_path / "a.run")
    flip(tmp_path / "a.run" / "latents" / "frames-000000-000003.safetensors")
    (tmp_path / "a.mp4").unlink()
    again = load_run(find_run(tmp_path / "a.run"), overrides=[], flags={"overwrite": True}).config
    with pytest.raises(DamagedError, match="SHA-256"):
        decode_again(again, find_run(tmp_path / "a.run"), Destination.of(again))
    run(going_on(tmp_path / "a.run"))
    assert torch.equal(latents(tmp_path / "a.run"), first)


# ---- starting onto a run ----


def test_latents_that_are_cut_short_while_they_are_decoded_are_named(
    model_folder: Path, tmp_path: Path
) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", "decode.frames=1", frames=80, steps=1, size="64x64")
    folder = tmp_path / "a.run"

    def cut() -> None:
        while not (folder / "decoded.json").exists():
            time.sleep(0.0005)
        [part] = (folder / "latents").glob("*.safetensors")
        os.truncate(part, 1000)

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(
        VinfinityError, match=r"frames-000000-000080\.safetensors: .*`vinfinity resume"
    ) as raised:
        run(config)
    cutter.join()
    assert raised.value.exit_code == 4
    run(going_on(folder))
    assert len(read_video(tmp_path / "a.mp4")) == 80
    assert len(events(folder, "damaged")) == 1


def test_starting_onto_a_run_offers_to_go_on_and_keeps_it(model_folder: Path, tmp_path: Path) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=1 steps")
    stopped(config, tmp_path / "a.run")
    before = sorted(path.name for path in (tmp_path / "a.run").rglob("*"))
    with pytest.raises(InputError, match=r"`vinfinity resume .*a\.run` resumes it, --overwrite starts"):
        run(config)
    other = config_of(model_folder, tmp_path / "a.mp4", resume=True, seed=3)
    with pytest.raises(InputError, match="is a run with other settings"):
        run(other)
    assert sorted(path.name for path in (tmp_path / "a.run").rglob("*")) == before
    run(config_of(model_folder, tmp_path / "a.mp4", overwrite=True, seed=3))
    assert events(tmp_path / "a.run", "started")
    assert not events(tmp_path / "a.run", "resumed")


def test_resume_starts_a_run_where_there_is_none_but_overwrites_nothing(
    model_folder: Path, tmp_path: Path
) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", resume=True, steps=2)
    (tmp_path / "a.mp4").write_bytes(b"precious")
    with pytest.raises(InputError, match="already exists"):
        run(config)
    (tmp_path / "a.mp4").unlink()
    run(config)
    assert (tmp_path / "a.mp4").is_file()
    written = (tmp_path / "a.mp4").read_bytes()
    assert run(config) is None
    assert (tmp_path / "a.mp4").read_bytes() == written


def test_other_weights_are_refused(own_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stopped(config_of(own_model, tmp_path / "a.mp4", "checkpoint.every=1 steps"), tmp_path / "a.run")
    path = own_model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(InputError, match="was started with other weights"):
        run(going_on(tmp_path / "a.run"))


def test_a_moved_run_goes_on_from_another_folder(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    relative = Path(os.path.relpath(model_folder, tmp_path / "here"))
    stopped(config_of(relative, Path("a.mp4"), "checkpoint.every=1 steps"), Path("a.run"))
    shutil.move(tmp_path / "here" / "a.run", tmp_path / "b.run")
    monkeypatch.chdir(tmp_path)
    run(going_on(Path("b.run")))
    assert (tmp_path / "b.mp4").is_file()


def test_restarts_of_launchers_are_known() -> None:
    assert was_restarted({"SLURM_RESTART_COUNT": "1"})
    assert was_restarted({"TORCHELASTIC_RESTART_COUNT": "2"})
    assert not was_restarted({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": ""})


def test_two_runs_onto_one_folder_are_kept_apart(model_folder: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a.run")
    with folder.locked(first=True), folder.locked(first=False):
        with pytest.raises(BusyError, match=rf"in use by another run \(process {os.getpid()} on ") as raised:
            run(config_of(model_folder, tmp_path / "a.mp4", steps=2))
        assert raised.value.exit_code == 6
    run(config_of(model_folder, tmp_path / "a.mp4", steps=2))


# ---- what is kept ----


def kept(
    folder: Path,
    *,
    every: str = "1 steps",
    keep: int = 2,
    shutdown: Shutdown | None = None,
    reuse_interval: int = 1,
) -> Checkpoints:
    from vinfinity.config import CheckpointConfig

    ranks = Ranks(device=CPU)
    return Checkpoints(
        RunFolder(folder),
        ranks=ranks,
        team=ranks.team(6, split=False),
        selection=select_all(6, seed=0),
        steps=50,
        config=CheckpointConfig(every=every, keep=keep),
        shutdown=shutdown or Shutdown(),
        progress=Progress(enabled=False),
        reuse_interval=reuse_interval,
    )


def test_the_newest_checkpoints_are_kept_with_the_samplers_history(tmp_path: Path) -> None:
    saved = kept(tmp_path, keep=3)
    states = [
        State(step=step, x=torch.randn(1, 4, 6, 2, 2), clean=torch.randn(1, 4, 6, 2, 2))
        for step in range(1, 8)
    ]
    for state in states:
        assert saved.after(state, Votes([saved.vote(True)]))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0005", "step-0006", "step-0007"]
    restored = kept(tmp_path).restore()
    assert restored is not None
    assert restored.step == 7
    assert torch.equal(restored.x, states[-1].x)
    assert restored.clean is not None
    assert states[-1].clean is not None
    assert torch.equal(restored.clean, states[-1].clean)
    saved.finish(State(step=50, x=states[0].x, clean=states[0].x))
    assert not (tmp_path / "checkpoints").exists()
    final = kept(tmp_path).restore()
    assert final is not None
    assert (final.step, final.clean) == (50, None)


@pytest.mark.parametrize("writers", [[6], [1, 6], [2, 3, 6], [1, 2, 3, 4, 5, 6]])
def test_parts_of_any_ranks_read_back_by_any_frames(writers: list[int], tmp_path: Path) -> None:
    x = torch.randn(1, 4, 6, 3, 2)
    edges = [0, *writers]
    made = [write_part(tmp_path, range(a, b), {"x": x[:, :, a:b]}) for a, b in itertools.pairwise(edges)]
    write_manifest(tmp_path, made, step=3, settings="these", tensors=("x",), seeds=[7, 7, 2, 2, 2, 7])
    parts: Parts = read_manifest(tmp_path)
    assert parts.seeds == ((0, 2, 7), (2, 5, 2), (5, 6, 7))
    parts.verify()
    for a in range(6):
        for b in range(a + 1, 7):
            assert torch.equal(parts.read(range(a, b)), x[0, :, a:b])
    save_whole(parts, tmp_path / "whole.safetensors", source="x", name="latents")
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "whole.safetensors")["latents"], x)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("5 steps", ("steps", 5)),
        ("1step", ("steps", 1)),
        ("90s", ("seconds", 90)),
        ("10min", ("seconds", 600)),
        ("2 h", ("seconds", 7200)),
        ("auto", ("auto", 0)),
        ("never", ("never", 0)),
    ],
)
def test_intervals_are_steps_or_times(text: str, meant: tuple[str, float]) -> None:
    assert parse_interval(text) == meant


@pytest.mark.parametrize("text", ["", "5", "0 steps", "-1 min", "10 parsecs", "1.5h", "steps"])
def test_other_intervals_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.every"):
        parse_interval(text)


def test_the_automatic_interval_costs_less_than_two_percent(tmp_path: Path) -> None:
    """However long a checkpoint takes, the next one is due no sooner than 60 times that later."""
    saved = kept(tmp_path, every="auto")
    assert not saved.vote(True).checkpoint_due
    for cost in (0.01, 3.0, 100.0):
        saved._cost = cost
        for elapsed, due in ((max(60.0, 60 * cost) - 1, False), (max(60.0, 60 * cost) + 1, True)):
            saved._last = time.monotonic() - elapsed
            assert saved.vote(True).checkpoint_due == due


# ---- decoding again ----


def test_latents_are_decoded_again_with_other_settings(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=2, size="64x64", frames=9))
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["decode", str(tmp_path / "a.run")])
    assert ended.value.code == 2  # a.mp4 exists
    arguments = ["decode", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "b.mp4"), "video.crf=51"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert read_video(tmp_path / "b.mp4").shape == read_video(tmp_path / "a.mp4").shape
    assert len((tmp_path / "b.mp4").read_bytes()) < len(before)
    assert '"video.crf": 51' in read_metadata(tmp_path / "b.mp4")["comment"]
    with pytest.raises(SystemExit) as ended:
        main(["decode", str(tmp_path / "a.run"), "--out", str(tmp_path / "c.mp4"), "seed=4"])
    assert ended.value.code == 2


# ---- a stretch anew, and more frames ----


def edit(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


@pytest.mark.parametrize("sampler", ["ddim", "sde-dpmsolver++", "lcm"])
def test_redo_changes_the_stretch_and_not_a_bit_around_it(
    sampler: str, model_folder: Path, tmp_path: Path
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=24, sampler=sampler, steps=4, seed=3))
    edit("redo", str(tmp_path / "a.run"), "--frames", "8:16")
    ours, theirs = latents(tmp_path / "a-redo.run"), latents(tmp_path / "a.run")
    difference = (ours - theirs).abs().amax((0, 2, 3))
    assert [frame for frame in range(24) if difference[frame] > 0] == list(range(8, 16))
    assert len(read_video(tmp_path / "a-redo.mp4")) == 24
    edit(
        "redo",
        str(tmp_path / "a.mp4"),
        "--frames",
        "8:16",
        "--out",
        str(tmp_path / "b.mp4"),
        "--prompt",
        "sea",
    )
    assert not torch.equal(latents(tmp_path / "b.run"), ours)
    settings = load_run(find_run(tmp_path / "b.run"), overrides=[], flags={}).config
    assert (settings.prompt, settings.seed) == ("sea", 4)


def test_extend_adds_frames_and_keeps_those_there_are(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=20, steps=4))
    edit("extend", str(tmp_path / "a.run"), "--frames", "+7")
    ours = latents(tmp_path / "a-extend.run")
    assert ours.shape[1] == 27
    assert torch.equal(ours[:, :20], latents(tmp_path / "a.run"))
    assert ours[:, 20:].std() > 0.1
    edit("redo", str(tmp_path / "a-extend.run"), "--frames", "18:22")  # and on from there
    seeds = [
        read_manifest(tmp_path / f"{name}.run" / "latents").seeds for name in ("a-extend", "a-extend-redo")
    ]
    assert seeds == [((0, 27, 0),), ((0, 19, 0), (19, 21, 1), (21, 27, 0))]  # those next to joins stay, too
    again = latents(tmp_path / "a-extend-redo.run")
    assert torch.equal(again[:, :18], ours[:, :18])
    assert torch.equal(again[:, 22:], ours[:, 22:])


def test_an_edit_computes_what_is_near_and_the_anchors(model_folder: Path, tmp_path: Path) -> None:
    few = ("attention.anchors=4", "attention.local=2")
    run(config_of(model_folder, tmp_path / "a.mp4", *few, frames=60, steps=2, seed=5))
    folder = find_run(tmp_path / "a.run")

    def computed(**given: str) -> Selection:
        kind = "extend" if "frames" in given else "redo"
        return prepare(
            edited(folder, kind, overrides=["edit.context=3"], given=given, flags={}).config
        ).selection

    middle = computed(**{"edit.redo": "30:36"})
    assert middle.frames == (7, 22, *range(27, 39), 52)
    assert middle.generated == frozenset(range(30, 36))
    assert middle.seeds == (5,) * 31 + (6,) * 4 + (5,) * 25
    longer = computed(frames="+4")
    assert longer.frames == (8, 24, 40, *range(56, 64))
    assert longer.generated == frozenset(range(60, 64))
    run(config_of(model_folder, tmp_path / "short.mp4", *few, frames=16, steps=1))
    folder = find_run(tmp_path / "short.run")
    assert computed(**{"edit.redo": "3:5"}).frames == tuple(
        range(16)
    )  # attention is plain: all frames see each other

    edit("redo", str(tmp_path / "a.run"), "--frames", "30:36", "edit.context=3")
    ours, theirs = latents(tmp_path / "a-redo.run"), latents(tmp_path / "a.run")
    assert [frame for frame in range(60) if not torch.equal(ours[:, frame], theirs[:, frame])] == list(
        range(30, 36)
    )
    assert len(read_video(tmp_path / "a-redo.mp4")) == 60
    more = ("--out", str(tmp_path / "b.mp4"), "--gpus", "3", "edit.context=3")
    edit("redo", str(tmp_path / "a.run"), "--frames", "30:36", *more)
    assert (latents(tmp_path / "b.run") - ours).abs().max() <= 1e-4


def test_what_lies_far_from_an_edit_hardly_touches_it(tmp_path: Path) -> None:
    whole = ("edit.context=300", "--out", str(tmp_path / "whole.mp4"))
    settings = {"frames": 140, "steps": 6, "size": "64x40", "seed": 2}
    run(config_of("mini", tmp_path / "a.mp4", **settings))
    for more in ((), whole):
        edit("redo", str(tmp_path / "a.run"), "--frames", "60:72", *more)
    near, everything, before = (latents(tmp_path / f"{name}.run") for name in ("a-redo", "whole", "a"))
    changed = (everything - before)[:, 60:72].square().mean().sqrt()
    assert changed > 0.1
    assert (near - everything)[:, 60:72].square().mean().sqrt() < 0.2 * changed


def test_an_earlier_run_that_is_damaged_under_way_ends_a_redo_on_all_ranks(
    model_folder: Path, tmp_path: Path
) -> None:
    """Rank 0 reads the frames that stay when the others have written theirs; the others are told, and do not wait."""
    run(config_of(model_folder, tmp_path / "a.mp4", frames=9))
    [part] = (tmp_path / "a.run" / "latents").glob("*.safetensors")
    folder = find_run(tmp_path / "a.run")
    given, flags = {"edit.redo": "4:8"}, {"gpus": "2", "device": "cpu"}
    config = edited(folder, "redo", overrides=["checkpoint.every=1 steps"], given=given, flags=flags).config

    def cut() -> None:
        while not (tmp_path / "a-redo.run" / "checkpoints" / "step-0001").exists():
            time.sleep(0.0005)
        os.truncate(part, 1000)

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(VinfinityError, match=f"{part.name}: cannot be read") as raised:
        run(config)
    cutter.join()
    assert raised.value.exit_code == 4
    assert not (tmp_path / "a-redo.run" / "latents").exists()


def test_a_redo_that_was_stopped_goes_on(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=6))
    settings = ("--frames", "2:5", "checkpoint.every=1 steps")
    edit("redo", str(tmp_path / "a.run"), *settings, "--out", str(tmp_path / "whole.mp4"))
    due = tmp_path / "a-redo.run" / "checkpoints" / "step-0003" / "manifest.json"
    with signalled(due), pytest.raises(SystemExit) as ended:
        main(["redo", str(tmp_path / "a.run"), *settings])
    assert ended.value.code == 75
    edit("resume", str(tmp_path / "a-redo.run"))
    assert torch.equal(latents(tmp_path / "a-redo.run"), latents(tmp_path / "whole.run"))


def test_frames_next_to_a_join_are_kept_for_most_of_the_steps() -> None:
    from vinfinity.denoise.kept_frames import kept_until

    until = kept_until(range(24), known=20, redo=range(4, 20), blend=3, steps=32).tolist()
    assert until == [32] * 4 + [30, 24, 14] + [0] * 17
    until = kept_until(range(20), known=20, redo=range(4, 14), blend=9, steps=9).tolist()
    assert until == [9] * 4 + [8, 5, 0, 0, 0, 0, 0, 0, 5, 8] + [9] * 6
    # a frame that is to be made anew is free for a step at the least, where there are few, too
    assert kept_until(range(20), known=20, redo=range(4, 20), blend=4, steps=2).tolist()[4:8] == [1, 1, 1, 1]


# ---- what can go wrong with files ----

PROGRAM = "import sys; from vinfinity.cli import main; main(sys.argv[1:])"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_at_a_checkpoint_ends_the_run_and_keeps_the_one_before(
    small_disk: Path, model_folder: Path
) -> None:
    config = config_of(model_folder, small_disk / "a.mp4", "checkpoint.every=2 steps")
    stopped(config, small_disk / "a.run", at=2)
    left = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"x" * (left - left % 4096))
    assert (small_disk / "a.run" / "checkpoints").exists()
    with pytest.raises(OutputError, match=r"No space left on device.*; `vinfinity resume") as raised:
        run(going_on(small_disk / "a.run"))
    assert raised.value.exit_code == 4
    kept = RunFolder(small_disk / "a.run")
    assert kept.holds_work()
    (small_disk / "filler").unlink()
    run(going_on(small_disk / "a.run"))
    assert (small_disk / "a.mp4").is_file()


def test_a_disk_that_fills_up_while_decoding_keeps_the_latents(small_disk: Path, model_folder: Path) -> None:
    flags = {"frames": 40, "size": "128x128", "steps": 1}
    config = config_of(model_folder, small_disk / "a.mp4", "video.crf=0", "video.preset=ultrafast", **flags)
    with pytest.raises(OutputError, match="cannot be written") as raised:
        run(config)
    assert raised.value.exit_code == 4
    read_manifest(small_disk / "a.run" / "latents").verify()
    assert not (small_disk / "a.mp4").exists()
    run(load_run(find_run(small_disk / "a.run"), overrides=["video.crf=51"], flags={"resume": True}).config)
    assert len(read_video(small_disk / "a.mp4")) == 40


def test_a_disk_that_becomes_read_only_is_named(small_disk: Path, model_folder: Path) -> None:
    config = config_of(model_folder, small_disk / "a.mp4", "checkpoint.every=1 steps")
    stopped(config, small_disk / "a.run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises((OutputError, InputError), match="cannot be written"):
        run(going_on(small_disk / "a.run"))


WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from vinfinity.config import VideoConfig
from vinfinity.media.mp4 import Mp4Writer

made = np.random.default_rng(0).integers(0, 255, (4, 64, 128, 3), dtype=np.uint8)
writer = Mp4Writer(Path(sys.argv[1]), width=128, height=64, fps=8, config=VideoConfig(), unfinished=Path(sys.argv[2]))
first = writer.frames
with writer:
    for index in range(first, int(sys.argv[3])):
        writer.write(made[index % 4])
    print(first, writer.frames, flush=True)
    if "kill" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("frames", [7, 30, 61])
def test_what_was_written_plays_after_a_kill_and_is_gone_on_with(frames: int, tmp_path: Path) -> None:
    part = tmp_path / "decoded.mp4"

    def write(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path / name), str(part), *more]
        return subprocess.run(command, capture_output=True, text=True)

    done = write("a.mp4", str(frames), "kill")
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["0", str(frames)])
    assert not (tmp_path / "a.mp4").exists()
    readable = len(read_video(part)) if part.stat().st_size else 0
    assert readable == frames - frames % 8  # a fragment is a second of 8 frames
    with part.open("ab") as file:
        file.write(b"the beginning of a fragment")
    assert write("a.mp4", str(frames + 5)).stdout.split() == [str(readable), str(frames + 5)]
    assert write("whole.mp4", str(frames + 5)).stdout.split() == ["0", str(frames + 5)]
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert len(read_video(tmp_path / "a.mp4")) == frames + 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "whole.mp4"]


def test_fragments_of_another_video_are_not_gone_on_with(tmp_path: Path) -> None:
    from vinfinity.media.fragments import Fragments

    path = tmp_path / "decoded.mp4"
    for of, expected in (("one", (0, 0)), ("one", (8, 5)), ("other", (0, 0)), ("one", (0, 0))):
        fragments = Fragments(path, identity=of)
        assert (fragments.frames, fragments.bytes) == expected
        if of == "one":
            fragments.add(b"12345", frames=8)
    path.write_bytes(b"1234")  # shorter than it was: what it holds is not what was written
    assert Fragments(path, identity="one").frames == 0
    (tmp_path / "decoded.json").write_text("[]")
    assert Fragments(path, identity="one").frames == 0


def test_decoding_that_was_stopped_goes_on_to_the_very_same_file(model_folder: Path, tmp_path: Path) -> None:
    settings = ("decode.frames=3", "video.metadata=false")
    for name in ("whole", "parted"):
        run(config_of(model_folder, tmp_path / f"{name}.mp4", *settings, frames=60, steps=1, size="128x64"))
    folder = tmp_path / "parted.run"
    again = ["decode", str(folder), "--out", str(tmp_path / "again.mp4")]
    with signalled(folder / "decoded.json"), pytest.raises(SystemExit) as ended:
        main(again)
    assert ended.value.code == 75
    kept = json.loads((folder / "decoded.json").read_text())["frames"]
    assert 8 <= kept < 60
    with pytest.raises(SystemExit) as ended:
        main([*again, "--gpus", "2", "decode.where=ranks"])
    assert ended.value.code == 0
    assert f"{kept} of 60 frames have already been decoded" in (folder / "log.txt").read_text()
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("again", "whole"))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert not (folder / "decoded.mp4").exists()
    assert not (folder / "decoded.json").exists()


# A library in front of libc's: the time of day, for whoever asks, is as many seconds off as a file says.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static time_t offset(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_OFFSET"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += offset();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_clock_that_is_set_under_way_changes_nothing(gpus: int, model_folder: Path, tmp_path: Path) -> None:
    source, library, offset = (tmp_path / name for name in ("clock.c", "clock.so", "offset"))
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    offset.write_text("0")
    settings = ("checkpoint.every=2s", "parallel.timeout=60")  # both far less than what the clock is off by
    run(config_of(model_folder, tmp_path / "whole.mp4", *settings, frames=9, gpus=gpus, steps=60))
    config = config_of(model_folder, tmp_path / "set.mp4", *settings, frames=9, gpus=gpus, steps=60)
    (tmp_path / "set.yaml").write_text(to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "vinfinity", "generate", "--config", str(tmp_path / "set.yaml")],
        env={**os.environ, "LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)},
        stderr=subprocess.PIPE,
        text=True,
    )
    started = time.monotonic()
    years = itertools.cycle([10 * 31536000, -10 * 31536000, 3600, -3600])
    while process.poll() is None:
        time.sleep(0.3)
        offset.write_text(str(next(years)))
    assert process.returncode == 0, process.stderr and process.stderr.read()
    ours, theirs = latents(tmp_path / "set.run"), latents(tmp_path / "whole.run")
    assert (ours - theirs).abs().max() <= 1e-4
    seen = {event["time"][:4] for event in events(tmp_path / "set.run", "step")}
    assert len(seen) > 1  # the clock was set while it denoised
    assert len(events(tmp_path / "set.run", "checkpoint")) <= (time.monotonic() - started) / 2
