"""Models, decoders and LoRAs that are made of links, as in the hub's cache: read, told apart, and named when broken."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from oracles.lora_files import LAYOUTS
from oracles.reference import configure
from oracles.runs import config_of, resumed_config, stop_after_step
from safetensors.torch import load_file, save_file

from vinfinity.errors import InputError
from vinfinity.job import prepare
from vinfinity.models.family import parts_of
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.run import run
from vinfinity.weights.card import find_model, weights_digest

PARTS = parts_of(UNET3D)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def link_files(source: Path, folder: Path) -> Path:
    """Return a snapshot of the hub's cache: folders of links to blobs whose names say nothing."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        blob = blobs / f"{number:040x}"
        blob.write_bytes(path.read_bytes())
        link = folder / "snapshots" / "main" / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder / "snapshots" / "main"


def link_parts(source: Path, folder: Path) -> Path:
    """Return a model whose parts are links to folders."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def link_whole(source: Path, folder: Path) -> Path:
    folder.symlink_to(source)
    return folder


def link_links(source: Path, folder: Path) -> Path:
    """Return a link to a model whose parts are links to folders of links."""
    folder.mkdir()
    model = link_parts(link_files(source, folder / "cache"), folder / "model")
    return link_whole(model, folder / "link")


LINKED: dict[str, Callable[[Path, Path], Path]] = {
    "files": link_files,
    "parts": link_parts,
    "the folder": link_whole,
    "links of links": link_links,
}


def change_weights(path: Path) -> None:
    """Every tensor of a file, wherever it is, with the same sizes."""
    target = path.resolve()
    save_file({name: x + 1 for name, x in load_file(target).items()}, target, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", LINKED)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_digest_tells_versions_of_a_linked_model_apart(
    part: str, kind: str, own_model: Path, tmp_path: Path
) -> None:
    model = LINKED[kind](own_model, tmp_path / "linked")
    first = weights_digest(model)
    assert first == weights_digest(own_model)
    path = next(path for path in sorted((model / part).iterdir()) if path.suffix in (".json", ".safetensors"))
    target = path.resolve()
    target.write_bytes(target.read_bytes()[:-1] + b" ")
    assert weights_digest(model) != first


@pytest.mark.parametrize("kind", LINKED)
def test_a_linked_decoder_has_a_digest_of_its_contents(kind: str, own_model: Path, tmp_path: Path) -> None:
    model = LINKED[kind](own_model, tmp_path / "linked")
    config = configure(own_model, decoder=str(model / "vae"), device="cpu").config
    first = prepare(config).decoder_digest
    change_weights(model / "vae" / "diffusion_pytorch_model.safetensors")
    assert prepare(config).decoder_digest != first


@pytest.mark.parametrize("kind", LINKED)
def test_a_run_does_not_resume_with_other_weights_behind_its_links(
    kind: str, own_model: Path, tmp_path: Path
) -> None:
    model = LINKED[kind](own_model, tmp_path / "linked")
    stop_after_step(config_of(model, tmp_path / "v.mp4", "checkpoint.every=1 steps"), tmp_path / "v.run")
    change_weights(model / WEIGHTS)
    with pytest.raises(InputError, match="was started with other weights"):
        run(resumed_config(tmp_path / "v.run"))


def test_a_lora_behind_a_link_has_a_digest_of_its_contents(model_folder: Path, tmp_path: Path) -> None:
    path = Path(LAYOUTS["PEFT, through links"](tmp_path).text)
    config = configure(model_folder, lora=[str(path)], device="cpu").config
    first = prepare(config).weights_digest
    change_weights(path)
    second = prepare(config).weights_digest
    settings = path.with_name("adapter_config.json").resolve()
    settings.write_text(settings.read_text().replace('"lora_alpha": 5', '"lora_alpha": 6'))
    assert len({first, second, prepare(config).weights_digest}) == 3


def test_links_that_form_a_loop_end(own_model: Path) -> None:
    first = weights_digest(own_model)
    (own_model / "unet" / "again").symlink_to(own_model)
    (own_model / "unet" / "itself").symlink_to("itself")
    (own_model / "vae" / "unet").symlink_to("../unet")
    assert weights_digest(own_model) == first
    assert prepare(configure(own_model, device="cpu").config).weights_digest == first


def test_broken_links_that_nothing_needs_are_left_out(own_model: Path) -> None:
    first = prepare(configure(own_model, device="cpu").config).weights_digest
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "notes.txt", "vae/older.json", "assets"):
        (own_model / name).symlink_to("nowhere")
    assert prepare(configure(own_model, device="cpu", dtype="fp32").config).weights_digest == first


@pytest.mark.parametrize(
    "name",
    [
        *PARTS,
        WEIGHTS,
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
        "card.json",
    ],
)
def test_broken_links_that_a_run_needs_are_named(name: str, own_model: Path) -> None:
    path = own_model / name
    if path.exists():
        path.rename(own_model / "elsewhere")
    path.symlink_to("nowhere")
    with pytest.raises(InputError) as raised:
        prepare(configure(own_model, device="cpu", dtype="fp32").config)
    line = str(raised.value)
    assert line.startswith(f"model: {path} ")
    assert "is a broken link to nowhere; " in line
    assert raised.value.exit_code == 2


def test_a_broken_link_to_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"model: .*model is a broken link to nowhere"):
        find_model(str(tmp_path / "model"))


def test_a_broken_link_to_a_decoder_is_named(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taesd").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"decoder: .*taesd is a broken link to nowhere"):
        prepare(configure(model_folder, decoder=str(tmp_path / "taesd"), device="cpu").config)


def test_a_folder_that_cannot_be_read_is_named(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, so the error is raised where the system would."""
    listing = Path.iterdir

    def refuse(folder: Path) -> object:
        if folder.name == "unet":
            raise PermissionError(13, "Permission denied", str(folder))
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"unet cannot be read \(Permission denied\); check its permissions"):
        weights_digest(own_model)
