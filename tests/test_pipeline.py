"""The Python API: videos in memory, from weights that are loaded once."""

import asyncio
import contextlib
import io
import logging
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.runs import make_nan
from oracles.video import read_video

import vinfinity
from vinfinity.cli import main
from vinfinity.media.mp4 import read_metadata
from vinfinity.runs.parts import read_manifest

PUBLIC = {
    "AttentionConfig",
    "BatchError",
    "BatchSummary",
    "BusyError",
    "Comparison",
    "DamagedError",
    "Evaluation",
    "Failure",
    "InputError",
    "LimitError",
    "NotFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "Pipeline",
    "Prompt",
    "RankError",
    "RunConfig",
    "State",
    "Stopped",
    "Summary",
    "UnexpectedError",
    "Video",
    "VinfinityError",
    "WeightsError",
    "compare",
    "evaluate",
    "generate",
    "generate_batch",
    "generate_file",
    "load_config",
}
SMALL: dict[str, Any] = {"frames": 5, "steps": 2, "size": "32x32"}


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> vinfinity.Pipeline:
    return vinfinity.Pipeline.from_pretrained(model_folder, device="cpu")


def latents_of_run(folder: Path) -> torch.Tensor:
    parts = read_manifest(folder / "latents")
    return parts.read(range(parts.frames))[None]


def test_public_names_are_pinned() -> None:
    assert set(vinfinity.__all__) == PUBLIC
    assert set(dir(vinfinity)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(vinfinity, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = vinfinity.generat


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, vinfinity; print(sorted({'torch', 'omegaconf', 'av', 'rich', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_pipeline_gives_the_latents_of_a_run(
    pipe: vinfinity.Pipeline, model_folder: Path, tmp_path: Path
) -> None:
    """A video of 21 frames is longer than the trained clip: dual-scope attention, with guidance."""
    settings: dict[str, Any] = {"frames": 21, "steps": 3, "size": "32x32", "guidance": 4.0, "seed": 9}
    video = pipe("a red ball", **settings)
    codec = {"crf": 0, "pixel_format": "yuv444p"}
    files = {"out": tmp_path / "a.mp4", "video": codec}
    config = vinfinity.load_config(prompt="a red ball", model=model_folder, device="cpu", **files, **settings)
    summary = vinfinity.generate_file(config)
    assert summary is not None
    assert torch.equal(video.latents, latents_of_run(tmp_path / "a.run"))
    assert video.frames.shape == (21, 32, 32, 3)
    assert video.frames.dtype == np.uint8
    assert np.abs(video.frames.astype(int) - read_video(tmp_path / "a.mp4")).max() <= 4
    assert (video.fps, video.size) == (summary.fps, summary.size)


def test_a_pipeline_can_be_called_again_and_again(pipe: vinfinity.Pipeline) -> None:
    first, other, again = (pipe("a red ball", seed=seed, **SMALL) for seed in (1, 2, 1))
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)


def test_denoise_yields_each_state_and_decode_shows_it(pipe: vinfinity.Pipeline) -> None:
    states = list(pipe.denoise("a red ball", **SMALL))
    assert [state.step for state in states] == [1, 2]
    assert states[0].x.shape == (1, 4, 5, 4, 4)
    final = pipe.decode(states[-1])
    assert np.array_equal(final.frames, pipe("a red ball", **SMALL).frames)
    assert pipe.decode(states[0].x[:, :, :2]).frames.shape == (2, 32, 32, 3)
    # states are ordinary tensors, which callers may change
    states[0].x.mul_(2.0)


def test_a_pipeline_works_in_threads_and_under_an_event_loop(pipe: vinfinity.Pipeline) -> None:
    expected = pipe("a red ball", **SMALL).latents
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(pipe("a red ball", **SMALL).latents)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def within() -> torch.Tensor:
        inside = pipe("a red ball", **SMALL).latents
        assert torch.equal(inside, await asyncio.to_thread(lambda: pipe("a red ball", **SMALL).latents))
        return inside

    results.append(asyncio.run(within()))
    assert len(results) == 3
    assert all(torch.equal(result, expected) for result in results)


def test_several_ranks_can_be_used_from_python(model_folder: Path, pipe: vinfinity.Pipeline) -> None:
    shared = vinfinity.generate("a red ball", model=model_folder, device="cpu", gpus=2, **SMALL)
    alone = pipe("a red ball", **SMALL)
    assert (shared.latents - alone.latents).abs().max() <= 1e-4
    assert shared.frames.shape == alone.frames.shape


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of this test for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_video_of_several_ranks_is_decoded_without_the_other_networks(
    model_folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_network(*_: object, **__: object) -> None:
        raise AssertionError("text encoder or denoiser loaded in the process that decodes")

    monkeypatch.setattr("vinfinity.networks.load_part", other_network)
    video = vinfinity.generate("a red ball", model=model_folder, device="cpu", gpus=2, **SMALL)
    assert video.frames.shape == (5, 32, 32, 3)
    assert list(temporary.iterdir()) == []


def test_what_several_ranks_computed_stays_if_decoding_fails(
    own_model: Path, temporary: Path, pipe: vinfinity.Pipeline
) -> None:
    make_nan(own_model / "vae")
    with pytest.raises(vinfinity.NotFiniteError, match="decoding") as raised:
        vinfinity.generate("a red ball", model=own_model, device="cpu", gpus=2, **SMALL)
    [folder] = temporary.iterdir()
    assert raised.value.__notes__ == [
        f"`vinfinity resume {folder}/video.run` makes the video from what was computed"
    ]
    expected = pipe("a red ball", **SMALL).latents
    assert (latents_of_run(folder / "video.run") - expected).abs().max() <= 1e-4


def test_nothing_stays_of_a_run_that_computed_nothing(own_model: Path, temporary: Path) -> None:
    make_nan(own_model / "text_encoder")
    with pytest.raises(vinfinity.NotFiniteError, match="text encoder"):
        vinfinity.generate("a red ball", model=own_model, device="cpu", gpus=2, **SMALL)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"out": "a.mp4"},
        {"save_latents": "a.safetensors"},
        {"preview": 2},
        {"audio": "a.wav"},
        {"video": {"crf": 4}},
        {"checkpoint.keep": 3},
        {"input": {"keep_audio": True}},
    ],
    ids=str,
)
@pytest.mark.parametrize("gpus", [1, 2])
def test_settings_of_files_are_refused_on_any_number_of_ranks(
    gpus: int, settings: dict[str, Any], pipe: vinfinity.Pipeline, model_folder: Path, tmp_path: Path
) -> None:
    if "input" in settings:
        video = pipe("a red ball", **SMALL).save(tmp_path / "from.mp4")
        settings = {"input": {"video": video, **settings["input"]}}
    small = {**SMALL, "model": model_folder, "device": "cpu"}
    name = next(iter(settings))
    with pytest.raises(
        vinfinity.InputError,
        match=rf"^{name}.*: .*belongs to runs that write files; use vinfinity\.generate_f",
    ):
        vinfinity.generate("a red ball", gpus=gpus, **small, **settings)


def test_ranks_can_be_given_their_own_settings(model_folder: Path) -> None:
    given: dict[str, Any] = {"gpus": 2, "model": model_folder, "device": "cpu", "parallel": {"timeout": 0}}
    with pytest.raises(vinfinity.InputError, match=r"parallel\.timeout: 0.0 .*is not more than 0"):
        vinfinity.generate("a red ball", **given, **SMALL)


def test_video_saves_and_shows_itself(pipe: vinfinity.Pipeline, tmp_path: Path) -> None:
    video = pipe("a red ball", **SMALL)
    path = video.save(tmp_path / "a.mp4")
    assert read_video(path).shape == (5, 32, 32, 3)
    assert read_metadata(path)["title"] == "a red ball"
    with pytest.raises(
        vinfinity.InputError, match="already exists; choose another name or pass overwrite=True"
    ):
        video.save(path)
    with pytest.raises(vinfinity.InputError, match=r"does not end in \.mp4"):
        video.save(tmp_path / "a.avi")
    video.save(path, overwrite=True, crf=40)
    assert '<video controls loop width="32" src="data:video/mp4;base64,' in video._repr_html_()
    assert repr(video) == "Video(5 frames of 32x32 at 8 fps)"


def test_as_a_library_it_prints_nothing_and_leaves_signals_alone(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    seen: list[object] = []
    pipe = vinfinity.Pipeline.from_pretrained(model_folder, device="cpu")
    with caplog.at_level(logging.INFO, logger="vinfinity"):
        for _ in pipe.denoise("a red ball " * 9, **SMALL):
            seen.append({number: signal.getsignal(number) for number in handlers})
        config = vinfinity.load_config(
            prompt="a red ball " * 9, model=model_folder, device="cpu", out=tmp_path / "a.mp4", **SMALL
        )
        vinfinity.generate_file(config)
    assert seen == [handlers] * 2
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert "the text encoder takes 16 tokens" in caplog.text
    assert "denoising: 2 steps in" in caplog.text


def test_it_logs_settings_without_effect(pipe: vinfinity.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    pipe("a red ball", **SMALL, negative="blur", guidance=1.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "negative: has no effect: guidance is 1" in caplog.text


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"frames": 0}, "frames: 0 .*is less than 1"),
        ({"frames": "many"}, "frames: many .*is not a whole number"),
        ({"frmes": 3}, "did you mean frames"),
        ({"attention": {"lcal": 3}}, r"did you mean attention\.local"),
        ({"sampler": "ddmi"}, "did you mean ddim"),
        ({"out": "a.mp4"}, r"out: a\.mp4 belongs to runs that write files; use vinfinity\.generate_file"),
        ({"checkpoint": {"keep": 3}}, "belongs to runs that write files"),
        ({"dtype": "fp16"}, "dtype: fp16 was fixed when the model was loaded"),
    ],
    ids=str,
)
def test_unusable_settings_raise_the_same_message_as_on_the_command_line(
    settings: dict[str, Any], line: str, pipe: vinfinity.Pipeline
) -> None:
    with pytest.raises(vinfinity.InputError, match=line) as raised:
        pipe.denoise("a red ball", **settings)
    assert "\n" not in str(raised.value)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(vinfinity.InputError, match="did you mean mini"):
        vinfinity.Pipeline.from_pretrained("minni")
    with pytest.raises(vinfinity.InputError, match="frames: 3 is a setting of a video"):
        vinfinity.Pipeline.from_pretrained("mini", frames=3)


def test_a_run_is_checked_once(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check of a run of one rank, counted by wrapping the functions wherever they are imported."""
    counted = {
        "prepare": "vinfinity.job",
        "check_files": "vinfinity.runs.paths",
        "how_to_start": "vinfinity.runs.start",
        "weights_digest": "vinfinity.weights.card",
    }
    calls: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return wrapped

    import vinfinity.run
    import vinfinity.runs.paths

    for name, home in counted.items():
        function = getattr(sys.modules[home], name)
        for module in list(sys.modules.values()):
            if module.__name__.startswith("vinfinity") and getattr(module, name, None) is function:
                monkeypatch.setattr(module, name, counting(name, function))
    of = vinfinity.runs.paths.Destination.of
    monkeypatch.setattr(vinfinity.runs.paths.Destination, "of", counting("output paths", of))
    arguments = [
        "generate",
        "--model",
        str(model_folder),
        "-p",
        "a red ball",
        "--frames",
        "3",
        "--steps",
        "2",
    ]
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(io.StringIO()):
        main([*arguments, "--size", "32x32", "--device", "cpu", "--out", str(tmp_path / "a.mp4")])
    assert ended.value.code == 0
    assert calls["check_files"] <= 2
    # the model's weights and the decoder's
    assert calls == {
        "prepare": 1,
        "how_to_start": 2,
        "weights_digest": 2,
        "output paths": 1,
        "check_files": calls["check_files"],
    }
