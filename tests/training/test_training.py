"""The training scripts of the embedded model, by a few steps of each on tiny data."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


def script(name: str) -> Any:
    """Return the module of a training script."""
    return pytest.importorskip(name, reason="needs diffusers and transformers", exc_type=ImportError)


common, enlarge_vae, finetune = script("common"), script("enlarge_vae"), script("finetune")
evaluate, export, recipe = script("evaluate"), script("export"), script("recipe")
painter, temporal, tokenizer = script("painter"), script("temporal"), script("tokenizer")
train_text, train_unet, train_vae = script("train_text"), script("train_unet"), script("train_vae")
world = script("world")


def make_vae(seed: int) -> Any:
    """Return an untrained autoencoder."""
    torch.manual_seed(seed)
    return train_vae.build_vae().eval()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all that the denoiser's stages need, untrained: tokenizer, networks and two clips."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer.build(folder / "tokenizer")
    words = finetune.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    for path in (folder, folder / "start"):
        train_text.build_text_encoder(words).save_pretrained(path / "text_encoder")
    temporal.build_unet().save_pretrained(folder / "start" / "unet")
    make_vae(1).save_pretrained(folder / "vae")
    rng = np.random.default_rng(1)
    scenes = [asdict(world.sample_scene(rng)) for _ in range(2)]
    torch.save({"latents": torch.randn(2, 24, 4, 10, 16).half(), "scenes": scenes}, folder / "latents.pt")
    return folder


def train_from_nothing(work: Path, *more: str) -> None:
    """Two steps of the video stage."""
    sizes = ("--frames", "4", "--batch", "1", "--image-batch", "1", "--steps", "2", "--threads", "1")
    train_unet.main(["--work", str(work), "--name", "first", *sizes, *more])


def train_further(work: Path) -> None:
    """Two steps of further training, of which the second is a checkpoint's, too."""
    sizes = ("--pairs", "1", "--accumulate", "1", "--steps", "2", "--save-every", "1", "--decays", "0.9")
    finetune.main(["--work", str(work), "--name", "second", "--init", "start", *sizes])


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two modules have the same weights."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_painter_is_trained_anew_for_an_autoencoder_with_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "painter.pt"
    first = painter.load_painter(make_vae(1), path, steps=2, count=4)
    again = painter.load_painter(make_vae(1), path, steps=3, count=4)
    other = painter.load_painter(make_vae(2), path, steps=2, count=4)
    kept = painter.load_painter(make_vae(2), path, steps=3, count=4)
    assert same(first, again)
    assert not same(first, other)
    assert same(other, kept)


def models(folder: Path) -> dict[str, bytes]:
    """Return the model files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("train", "name"),
    [(train_from_nothing, "first"), (train_further, "second-0.9")],
    ids=["unet", "finetune"],
)
def test_models_lost_after_the_last_checkpoint_are_saved_by_the_next_start(
    work: Path, train: Callable[[Path], None], name: str
) -> None:
    train(work)
    saved = models(work / name)
    assert {Path(path).parent.name for path in saved} == {"unet", "text_encoder"}
    shutil.rmtree(work / name)
    train(work)
    assert models(work / name) == saved


@pytest.mark.parametrize("most", [16, 24, 64])
def test_many_threads_are_tried_in_few_steps_and_the_fastest_number_is_kept(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, threads, used = 0.0, most, []

    def choose(count: int) -> None:
        nonlocal threads
        threads = count

    monkeypatch.setattr(common.time, "time", lambda: now)
    monkeypatch.setattr(torch, "set_num_threads", choose)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    chooser = common.Threads(most)
    for _ in range(1600):
        chooser.step()
        used.append(threads)
        now += 1 + abs(threads - 8)
    late = used[400:]
    assert late.count(8) > 0.8 * len(late)
    assert max(used) == most


@pytest.mark.slow
def test_worker_processes_render_what_one_process_renders() -> None:
    mixture = finetune.Mixture(pairs=1, directed=0.5, correct=0.5, close=0.5, height=80)
    batch = partial(finetune.render_batch, mixture=mixture)
    for render, jobs in ((batch, range(6)), (enlarge_vae.render_frames, [(seed, 2) for seed in range(6)])):
        alone, shared = (
            list(common.render_in_order(jobs, render=render, workers=workers)) for workers in (0, 2)
        )
        if render is batch:
            alone, shared = [asdict(one) for one in alone], [asdict(one) for one in shared]
        np.testing.assert_equal(shared, alone)


def test_the_large_autoencoder_trains_in_crops_and_then_in_whole_pictures(work: Path) -> None:
    sizes = ("--batch", "2", "--steps", "2", "--held-out", "2", "--pictures", "2")
    enlarge_vae.main(["--work", str(work), *sizes])
    assert set(models(work / "vae256")) == {"config.json", "diffusion_pytorch_model.safetensors"}


@pytest.mark.parametrize(("scale", "trains"), [("0", False), ("0.2", True)], ids=["fixed", "trained"])
def test_a_text_encoder_trains_only_at_a_rate_above_zero(work: Path, scale: str, trains: bool) -> None:
    train_from_nothing(work, "--name", f"text{scale}", "--text-scale", scale)
    state = torch.load(work / f"text{scale}.ckpt", weights_only=True)
    unet = len(list(temporal.build_unet().parameters()))
    encoder = len(list(train_text.CLIPTextModel.from_pretrained(work / "text_encoder").parameters()))
    expected = unet + encoder if trains else unet
    assert len(state["parameters"]) == len(state["average"]) == len(state["optimizer"]["state"]) == expected
    path = Path("text_encoder", "model.safetensors")
    assert ((work / path).read_bytes() == (work / f"text{scale}" / path).read_bytes()) != trains


def test_the_card_has_the_figures_of_the_evaluation_in_the_form_of_the_packaged_card(
    work: Path, tmp_path: Path
) -> None:
    run = ["--work", str(work), "--run", "start", "--vae", "vae"]
    evaluate.main([*run, "--clips", "1", "--steps", "1", "--threads", "1"])
    export.main([*run, "--measured", str(work / "evaluation.json"), "--out", str(tmp_path)])
    ours, packaged = (json.loads((folder / "card.json").read_text()) for folder in (tmp_path, recipe.ASSETS))
    assert ours.keys() == packaged.keys()
    figures = ours["measured"]["clips_of_16_frames"]
    assert list(figures) == list(packaged["measured"]["clips_of_16_frames"])
    assert figures["n"] == 1
