"""How a run starts if its folder exists already: refuse, resume or overwrite, and one run at a time."""

import dataclasses
import errno
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles.command_line import Cli
from oracles.runs import (
    config_of,
    events,
    exit_code,
    manifest_of_step,
    resumed_config,
    signal_when_exists,
    stop_after_step,
)
from safetensors.torch import load_file, save_file

from vinfinity.config import RunConfig
from vinfinity.errors import BusyError, InputError, OutputError, Stopped
from vinfinity.run import run
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.runs.start import settle_start
from vinfinity.system.signals import Shutdown


def test_an_unfinished_run_is_not_replaced_without_overwrite(model_folder: Path, tmp_path: Path) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=1 steps")
    stop_after_step(config, tmp_path / "a.run")
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


def test_resume_without_a_run_starts_one_but_does_not_overwrite_files(
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


def test_other_settings_of_a_finished_video_s_files_are_not_ignored(
    model_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    def config(*overrides: str, **flags: bool) -> RunConfig:
        return config_of(model_folder, tmp_path / "a.mp4", *overrides, steps=1, resume=True, **flags)

    run(config())
    # the same, written out
    assert run(config("video.crf=18", "video.codec=h264")) is None
    other = config("video.crf=40", f"save_latents={tmp_path / 'my latents.safetensors'}")
    with pytest.raises(
        InputError, match=r"^save_latents: .* is not what the finished video was made with"
    ) as raised:
        run(other)
    [_, command, _] = raised.value.message.split("`")
    assert exit_code(*shlex.split(command)[1:]) == 0
    assert (tmp_path / "my latents.safetensors").exists()
    assert run(other) is None
    assert exit_code("resume", str(tmp_path / "a.run")) == 0
    with pytest.raises(InputError, match=r"^video\.crf: null is not what the finished video was made with"):
        run(config())
    assert run(config(overwrite=True)) is not None
    assert run(config(overwrite=True)) is None
    assert run(config()) is None
    # it was only decoded again
    assert len(events(tmp_path / "a.run", "step")) == 1


def test_a_requeued_job_replaces_a_run_of_other_settings_if_it_may(
    model_folder: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=1))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    settings = ("frames=3", "steps=1", "size=32x32", "device=cpu", f"model={model_folder}")
    command = ("generate", "-p", "a blue boat", "--out", str(tmp_path / "a.mp4"), *settings)
    assert "is a run with other settings" in cli.refused(*command)
    assert cli(*command, "--overwrite")[0] == 0
    assert "a blue boat" in (tmp_path / "a.run" / "config.yaml").read_text()
    assert cli(*command, "--overwrite")[2].endswith("is finished; nothing to do\n")


@pytest.mark.parametrize("file", ["run.json", "config.yaml"])
@pytest.mark.parametrize("damage", [None, "{"])
def test_overwrite_replaces_no_run_that_cannot_be_read(
    file: str, damage: str | None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=1))
    config = config_of(model_folder, tmp_path / "a.mp4", steps=1, resume=True, overwrite=True)
    path, opened = tmp_path / "a.run" / file, Path.open

    def fails(opening: Path, *arguments: Any, **options: Any) -> Any:
        if opening == path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return opened(opening, *arguments, **options)

    before = path.read_bytes()
    if damage is None:
        monkeypatch.setattr(Path, "open", fails)
    else:
        path.write_text(damage)
    with pytest.raises(InputError, match=rf"^run: .*{file} (cannot be read|is damaged|was changed)"):
        settle_start(config, Destination.of(config))
    monkeypatch.undo()
    path.write_bytes(before)
    assert settle_start(config, Destination.of(config)) == (config, "done")


def change_weights(model: Path) -> None:
    """Change the weights of the UNet in a model's folder."""
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)


def test_a_run_that_was_being_replaced_is_replaced_by_the_next_attempt(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def in_order(folder: Path) -> Iterator[Path]:
        return iter(sorted(listed(folder)))

    # stands for a kill while the folder is emptied, between config.yaml and run.json
    listed = Path.iterdir

    run(config_of(model_folder, tmp_path / "a.mp4", steps=1))
    config = config_of(model_folder, tmp_path / "a.mp4", steps=1, seed=3, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fails)
        patch.setattr(Path, "iterdir", in_order)
        with pytest.raises(OutputError):
            run(config)
    restarted = dataclasses.replace(config, resume=True)
    assert settle_start(restarted, Destination.of(restarted))[1] == "new"


def test_a_run_does_not_resume_with_other_weights(own_model: Path, tmp_path: Path) -> None:
    stop_after_step(config_of(own_model, tmp_path / "a.mp4", "checkpoint.every=1 steps"), tmp_path / "a.run")
    change_weights(own_model)
    with pytest.raises(InputError, match="was started with other weights"):
        run(resumed_config(tmp_path / "a.run"))
    # with --overwrite, it starts over
    run(resumed_config(tmp_path / "a.run", overwrite=True))
    assert (tmp_path / "a.mp4").exists()
    assert not events(tmp_path / "a.run", "resumed")


def test_with_overwrite_a_run_whose_first_pass_has_other_weights_starts_over(
    model_folder: Path, own_model: Path, tmp_path: Path
) -> None:
    settings = ("checkpoint.every=1 steps", "first_pass.size=16x16", f"first_pass.model={own_model}")
    first = tmp_path / "a.run" / "first-pass.run"
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(manifest_of_step(first, 2)),
        pytest.raises(Stopped),
    ):
        run(config_of(model_folder, tmp_path / "a.mp4", *settings), shutdown=shutdown)
    change_weights(own_model)
    with pytest.raises(InputError, match=r"^first_pass\.model: .* was started with other weights"):
        run(resumed_config(tmp_path / "a.run"))
    run(resumed_config(tmp_path / "a.run", overwrite=True))
    assert not events(first, "resumed")


def test_a_moved_run_resumes_from_another_working_directory(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    relative = Path(os.path.relpath(model_folder, tmp_path / "here"))
    stop_after_step(config_of(relative, Path("a.mp4"), "checkpoint.every=1 steps"), Path("a.run"))
    shutil.move(tmp_path / "here" / "a.run", tmp_path / "b.run")
    monkeypatch.chdir(tmp_path)
    run(resumed_config(Path("b.run")))
    assert (tmp_path / "b.mp4").is_file()


def test_a_run_resumes_under_its_own_name_only(model_folder: Path, tmp_path: Path, cli: Cli) -> None:
    stop_after_step(
        config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=1 steps"), tmp_path / "a.run"
    )
    command = ("resume", str(tmp_path / "a.run"))
    message = cli.refused(*command, f"out={tmp_path / 'b.mp4'}")
    assert message.endswith(
        "b.mp4 (command line) is not the video of this run; remove it; "
        "`vinfinity decode` makes another video of a finished run"
    )
    message = cli.refused(*command, "resume=false", "overwrite=true")
    assert message == "resume: false (command line) would start the run over; remove it"
    assert cli(*command, f"out={tmp_path / 'a.mp4'}")[0] == 0
    assert events(tmp_path / "a.run", "resumed")


def test_a_run_that_goes_on_replaces_its_own_files_only(model_folder: Path, tmp_path: Path, cli: Cli) -> None:
    latents, others = tmp_path / "a.safetensors", [tmp_path / "other.safetensors", tmp_path / "a.png"]
    for path in (latents, tmp_path / "a.mp4", *others):
        path.write_bytes(b"precious")
    settings = ("checkpoint.every=1 steps", "video.sheet=false", f"save_latents={latents}")
    stop_after_step(
        config_of(model_folder, tmp_path / "a.mp4", *settings, overwrite=True), tmp_path / "a.run"
    )
    command = ("resume", str(tmp_path / "a.run"))
    for setting, path in zip((f"save_latents={others[0]}", "video.sheet=true"), others, strict=True):
        message = cli.refused(*command, setting)
        assert str(path) in message
        assert message.endswith(" already exists; choose another name or add overwrite=true")
        assert path.read_bytes() == b"precious"
    # those that it was started for, and those that it has made since
    assert cli(*command)[0] == 0
    assert cli(*command, f"save_latents={others[0]}", "video.sheet=true", "overwrite=true")[0] == 0
    assert b"precious" not in [path.read_bytes() for path in (latents, tmp_path / "a.mp4", *others)]
    (tmp_path / "a.mp4").unlink()
    assert cli(*command)[0] == 0


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_folder_belongs_to_one_video(
    finished: bool, model_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    def config(name: str, **flags: Any) -> RunConfig:
        return config_of(model_folder, f"{tmp_path}/{name}", "checkpoint.every=1 steps", **flags)

    if finished:
        run(config("a.mp4"))
    else:
        stop_after_step(config("a.mp4"), tmp_path / "a.run")
    (tmp_path / "a.gif").write_bytes(b"precious")
    before = sorted((tmp_path / "a.run").rglob("*"))
    for name in ("a.gif", "a.webp"):
        for flags in ({}, {"overwrite": True}, {"resume": True}, {"overwrite": True, "resume": True}):
            with pytest.raises(InputError, match=r"needs the folder .*a\.run, which holds the run of a\.mp4"):
                run(config(name, **flags))
    assert (tmp_path / "a.gif").read_bytes() == b"precious"
    assert sorted((tmp_path / "a.run").rglob("*")) == before
    if finished:
        assert cli("decode", str(tmp_path / "a.run"), "--out", str(tmp_path / "a.webp"))[0] == 0
        assert run(config("a.webp", resume=True)) is None
        # its latents are those of a.mp4
        with pytest.raises(InputError, match=r"holds the run of a\.mp4"):
            run(config("a.webp", overwrite=True))


def test_the_record_of_a_finished_run_is_not_replaced_without_overwrite(
    model_folder: Path, tmp_path: Path
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=1))
    shutil.rmtree(tmp_path / "a.run" / "latents")
    for path in (tmp_path / "a.mp4", tmp_path / "a.png"):
        path.unlink()
    with pytest.raises(
        InputError, match=r"belongs to a finished run; `vinfinity resume .*, --overwrite starts"
    ):
        run(config_of(model_folder, tmp_path / "a.mp4", steps=1, seed=3))


def test_commands_in_messages_can_be_pasted_whatever_the_name(
    model_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    config = config_of(model_folder, tmp_path / "it's a ball.mp4", "checkpoint.every=1 steps")
    messages = [stop_after_step(config, tmp_path / "it's a ball.run")]
    for other in (config, dataclasses.replace(config, resume=True, seed=3)):
        with pytest.raises(InputError) as raised:
            run(other)
        messages.append(raised.value.message)
    messages.append(cli.refused("decode", str(tmp_path / "it's a ball.run"), "video.crf=40"))
    messages.append(cli.refused("extend", str(tmp_path / "it's a ball.run"), "--frames", "+2"))
    for message in messages:
        assert shlex.split(message.split("`")[1]) == [
            "vinfinity",
            "resume",
            str(tmp_path / "it's a ball.run"),
        ]


def test_a_dry_run_is_refused_where_the_run_is(own_model: Path, tmp_path: Path, cli: Cli) -> None:
    command = ["generate", "-p", "a red ball", "--out", str(tmp_path / "a.mp4"), "frames=3", "size=32x32"]
    command += ["steps=12", "device=cpu", f"model={own_model}", "checkpoint.every=1 steps"]
    with signal_when_exists(manifest_of_step(tmp_path / "a.run", 3)):
        assert cli(*command)[0] == 75
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a.run").rglob("*")}
    for more in ([], ["--resume", "seed=3"]):
        assert cli.refused(*command, *more, "--dry-run") == cli.refused(*command, *more)
    for more in (["--resume"], ["--overwrite"]):
        assert cli(*command, *more, "--dry-run")[0] == 0
    change_weights(own_model)
    assert "was started with other weights" in cli.refused(*command, "--resume", "--dry-run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a.run").rglob("*")} == before
    assert cli(*command, "--overwrite")[0] == 0
    assert cli(*command, "--resume", "--dry-run")[2].endswith("a.mp4 is finished; nothing to do\n")


def test_two_runs_cannot_use_one_folder_at_the_same_time(model_folder: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a.run")
    with folder.locked(first=True), folder.locked(first=False):
        with pytest.raises(BusyError, match=rf"in use by another run \(process {os.getpid()} on ") as raised:
            run(config_of(model_folder, tmp_path / "a.mp4", steps=2))
        assert raised.value.exit_code == 6
    run(config_of(model_folder, tmp_path / "a.mp4", steps=2))
