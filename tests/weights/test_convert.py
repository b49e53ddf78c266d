"""Published layouts, made by reference implementations at small width, converted to model folders."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# imported before the stand-in for torchvision below
import transformers  # noqa: F401
from diffusers.models.embeddings import TimestepEmbedding
from oracles import lvdm
from oracles.networks import load_text_encoder, load_unet, load_vae, one_rank
from oracles.reference import fill, relative_error, save_model, tiny_unet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.errors import InputError, OutputError, VinfinityError
from vinfinity.models.frame_text import FrameText
from vinfinity.models.unet3d.lvdm import UNUSED_TENSORS, lvdm_faults, lvdm_parts, unused_text
from vinfinity.models.unet3d.tokenizer import load_tokenizer
from vinfinity.weights.card import read_card
from vinfinity.weights.convert import convert
from vinfinity.weights.load import check_weights, load_scheduler

CLOSE = 1e-4
FP32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
Note = Callable[[str, float], None]


@pytest.fixture(scope="module")
def open_clip() -> Iterator[Any]:
    """open_clip's model definitions. The package needs torchvision for one layer of its picture towers."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("open_clip_torch is not installed: pip install --no-deps -r requirements-ci-nodeps.txt")
    folder = spec.submodule_search_locations[0]
    before = dict(sys.modules)
    package = types.ModuleType("open_clip")
    package.__path__ = [folder]
    stand_ins = {
        name: types.ModuleType(name) for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc")
    }
    vars(stand_ins["torchvision.ops.misc"])["FrozenBatchNorm2d"] = object
    sys.modules.update({"open_clip": package, **stand_ins})
    try:
        yield importlib.import_module("open_clip.model")
    finally:
        for name in set(sys.modules) - set(before):
            if name.startswith(("open_clip", "torchvision")):
                del sys.modules[name]


@pytest.fixture(scope="module")
def text_tower(open_clip: Any) -> nn.Module:
    """OpenCLIP without its picture tower, as in VideoCrafter2's checkpoint."""
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=16, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=16, vocab_size=678, width=128, heads=2, layers=3)
    model = open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)
    del model.visual
    return fill(model, seed=3)


def penultimate(tower: Any, ids: Tensor) -> Tensor:
    """Return the text states of FrozenOpenCLIPEmbedder with layer: penultimate (lvdm/modules/encoders/condition.py)."""
    x = tower.token_embedding(ids) + tower.positional_embedding
    for block in tower.transformer.resblocks[:-1]:
        x = block(x, attn_mask=tower.attn_mask)
    return tower.ln_final(x)


def networks() -> tuple[lvdm.UNetModel, lvdm.Autoencoder]:
    return fill(lvdm.UNetModel(context=128), seed=1), fill(lvdm.Autoencoder(), seed=2)


@pytest.fixture(scope="module")
def parts(text_tower: nn.Module) -> dict[str, Any]:
    unet, vae = networks()
    return {"unet": unet, "vae": vae, "text": text_tower}


@pytest.fixture(scope="module")
def checkpoint(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lvdm") / "model.ckpt"
    torch.save({"state_dict": lvdm.checkpoint(**parts)}, path)
    return path


@pytest.fixture(scope="module")
def converted(checkpoint: Path, model_folder: Path) -> Path:
    return convert(checkpoint, checkpoint.parent / "videocrafter2", complete_from=str(model_folder))


def saved(state: dict[str, Any], folder: Path) -> Path:
    torch.save(state, folder / "model.ckpt")
    return folder / "model.ckpt"


def refusal(source: Path, target: Path, **options: Any) -> str:
    """Return the one-line error of a refused conversion, which leaves nothing beside the target."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(InputError) as raised:
        convert(source, target, **options)
    assert sorted(target.parent.iterdir()) == before
    assert raised.value.exit_code == 2
    line = str(raised.value)
    assert "\n" not in line
    return line


# ---- VideoCrafter2's model.ckpt ----


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mult": (1, 2, 2), "attention": (1, 2)},
        {"mult": (1, 2, 4, 4), "attention": (4, 2, 1), "layers": 1},
        {"fps": False},
        {"condition": 256, "layers": 1},
        {"mult": (1, 1), "attention": (2,)},
    ],
    ids=str,
)
def test_converted_unet_matches_the_published_definition(
    changes: dict[str, Any],
    text_tower: nn.Module,
    model_folder: Path,
    tmp_path: Path,
    record_worst: Note,
) -> None:
    reference = fill(lvdm.UNetModel(**{"context": 128, **changes}), seed=4)
    vae = fill(lvdm.Autoencoder(mult=(1, 1), layers=1))
    source = saved({"state_dict": lvdm.checkpoint(reference, vae, text_tower)}, tmp_path)
    folder = convert(source, tmp_path / "out", complete_from=str(model_folder))
    ours = load_unet(folder / "unet", **FP32)
    x, text = torch.randn(2, 4, 5, 8, 16), torch.randn(2, 7, 128)
    t = torch.tensor([417.0])
    condition = torch.randn(1, 256) if "condition" in changes else None
    fps = torch.tensor([24.0]) if changes.get("fps", True) else None
    expected = reference(
        x, t.expand(2), text, None if fps is None else fps.expand(2), None if condition is None else condition
    )
    error = relative_error(
        ours(x, t, FrameText.same(text), one_rank(5), fps=fps, condition=condition), expected
    )
    assert error <= CLOSE
    record_worst(f"LVDM UNet, {changes}", error)


def test_converted_autoencoder_matches_the_published_definition(
    converted: Path, parts: dict[str, Any], record_worst: Note
) -> None:
    ours, reference = load_vae(converted / "vae", **FP32), parts["vae"]
    latents, pictures = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 32, 48)
    decoding = relative_error(ours.decode(latents), reference.decode(latents))
    encoding = relative_error(ours.encode(pictures)[0], reference.encode(pictures))
    assert max(decoding, encoding) <= CLOSE
    record_worst("LVDM autoencoder", max(decoding, encoding))


def test_converted_text_encoder_matches_openclips_penultimate_layer(
    converted: Path, parts: dict[str, Any], record_worst: Note
) -> None:
    ids = torch.randint(0, 678, (2, 16))
    error = relative_error(
        load_text_encoder(converted / "text_encoder", **FP32)(ids), penultimate(parts["text"], ids)
    )
    assert error <= CLOSE
    record_worst("OpenCLIP text tower", error)


def test_tables_cover_both_sides_fully(parts: dict[str, Any]) -> None:
    state = lvdm.checkpoint(**parts)
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    found = lvdm_parts(shapes)
    assert lvdm_faults(found, shapes) == []
    used = {source.name for part in found for source in part.sources.values()}
    assert used | (UNUSED_TENSORS & state.keys()) | (unused_text(shapes) & state.keys()) == state.keys()
    assert used.isdisjoint(UNUSED_TENSORS | unused_text(shapes))
    for part in found:
        assert part.sources.keys() == part.shapes.keys()
    # a plain source fills one parameter, a fused one three
    whole = [s.name for part in found for s in part.sources.values() if s.third is None]
    fused = [s.name for part in found for s in part.sources.values() if s.third is not None]
    assert len(whole) == len(set(whole))
    assert len(fused) == 3 * len(set(fused))


def test_tables_cover_the_published_size() -> None:
    """The names and shapes of VideoCrafter2 itself: 1.41 billion parameters in its UNet."""
    with torch.device("meta"):
        unet = lvdm.UNetModel(
            width=320, mult=(1, 2, 4, 4), attention=(4, 2, 1), layers=2, head=64, context=1024
        )
        vae = lvdm.Autoencoder(ch=128, mult=(1, 2, 4, 4), layers=2)
    shapes = {f"model.diffusion_model.{name}": tuple(x.shape) for name, x in unet.state_dict().items()}
    shapes |= {f"first_stage_model.{name}": tuple(x.shape) for name, x in vae.state_dict().items()}
    shapes |= openclip_shapes(width=1024, layers=24)
    found = {part.name: part for part in lvdm_parts(shapes)}
    assert lvdm_faults(tuple(found.values()), shapes) == []
    count = sum(torch.Size(shape).numel() for shape in found["unet"].shapes.values())
    assert 1.40e9 < count < 1.42e9
    assert found["unet"].config["block_out_channels"] == (320, 640, 1280, 1280)
    assert found["unet"].config["attention_head_dim"] == 64
    assert found["text_encoder"].config["num_hidden_layers"] == 23
    assert found["text_encoder"].config["num_attention_heads"] == 16


def openclip_shapes(*, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of an OpenCLIP text tower."""
    block = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (49408, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for index in range(layers):
        shapes |= {f"transformer.resblocks.{index}.{name}": shape for name, shape in block.items()}
    return {f"cond_stage_model.model.{name}": shape for name, shape in shapes.items()}


def test_converted_folder_is_a_model_with_its_authors_settings(converted: Path) -> None:
    check_weights(converted, prefer_fp16=True)
    card = read_card(str(converted))
    assert card.name == "videocrafter2"
    assert (card.trained_frames, card.traits.denoiser.takes_fps, card.text_length) == (16, True, 16)
    assert card.defaults["sampler"] == "videocrafter2"
    assert card.defaults["size"] == "512x320"
    schedule = load_scheduler(converted / "scheduler")
    assert isinstance(schedule, SchedulerConfig)
    assert (schedule.beta_schedule, schedule.beta_end) == ("scaled_linear", 0.012)
    assert (schedule.latent_scale, schedule.latent_scale_steps) == (0.7, 400)
    # OpenCLIP pads texts with token 0
    tokens = load_tokenizer(converted / "tokenizer", length=16)("red")
    assert tokens.ids[-1] == 0


def test_weights_keep_their_type_by_default(
    checkpoint: Path, converted: Path, model_folder: Path, tmp_path: Path
) -> None:
    name = Path("unet", "diffusion_pytorch_model.safetensors")
    full = load_file(converted / name)
    assert {x.dtype for x in full.values()} == {torch.float32}
    folder = convert(checkpoint, tmp_path / "half", complete_from=str(model_folder), dtype=torch.bfloat16)
    half = load_file(folder / name)
    assert all(torch.equal(half[key], full[key].bfloat16()) for key in full)


def test_a_checkpoint_may_be_a_bare_state_dict(
    parts: dict[str, Any], converted: Path, tmp_path: Path
) -> None:
    source = saved(lvdm.checkpoint(**parts), tmp_path)
    folder = convert(source, tmp_path / "out", complete_from=str(converted))
    assert (folder / "unet" / "config.json").read_text() == (converted / "unet" / "config.json").read_text()


def test_a_video_is_made_with_a_converted_model(converted: Path, tmp_path: Path) -> None:
    from oracles.reference import configure

    from vinfinity.run import run

    resolved = configure(
        converted, frames=3, size="32x32", steps=3, out=str(tmp_path / "a.mp4"), device="cpu", eta="1.0"
    )
    summary = run(resolved.config)
    assert summary is not None
    assert summary.out.is_file()


# ---- checkpoints that are refused ----


UNET, TEXT = "model.diffusion_model.", "cond_stage_model.model."


def remove(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in names:
            del state[name]

    return change


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(f"{UNET}out.2.bias"), f"missing {UNET}out.2.bias"),
        (
            remove(f"{UNET}middle_block.3.temopral_conv.conv4.3.weight"),
            "missing model.diffusion_model.middle_block.3",
        ),
        (remove("first_stage_model.quant_conv.bias"), "missing first_stage_model.quant_conv.bias"),
        (remove(f"{TEXT}transformer.resblocks.0.attn.in_proj_weight"), "attn.in_proj_weight"),
        (put("surplus", torch.zeros(2)), "unexpected surplus"),
        (put(f"{UNET}label_emb.weight", torch.zeros(2)), f"unexpected {UNET}label_emb.weight"),
        (put(f"{UNET}time_embed.0.bias", torch.zeros(3)), "time_embed.0.bias is 3, not 128"),
        (remove(f"{UNET}init_attn.0.proj_in.weight"), "unsupported architecture"),
        (remove(f"{TEXT}token_embedding.weight"), "unsupported architecture"),
        (remove("first_stage_model.post_quant_conv.weight"), "unsupported architecture"),
        (put("scale_arr", torch.rand(1000)), "scale_arr"),
        (put("epoch", 3), "has 'epoch' of type int, which is not a tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_checkpoints_that_do_not_fit_are_refused_naming_the_key(
    change: Callable[[dict[str, Any]], None],
    message: str,
    parts: dict[str, Any],
    model_folder: Path,
    tmp_path: Path,
) -> None:
    state = lvdm.checkpoint(**parts)
    change(state)
    source = saved(state, tmp_path)
    assert message in refusal(source, tmp_path / "out", complete_from=str(model_folder))


def test_missing_fused_weights_are_one_fault(
    parts: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    state = lvdm.checkpoint(**parts)
    del state[f"{TEXT}transformer.resblocks.0.attn.in_proj_weight"]
    line = refusal(saved(state, tmp_path), tmp_path / "out", complete_from=str(model_folder))
    assert line.count("in_proj_weight") == 1


def test_long_lists_of_faults_show_ten_and_a_count(
    parts: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    state = lvdm.checkpoint(**parts) | {f"surplus{i}": torch.zeros(1) for i in range(33)}
    line = refusal(saved(state, tmp_path), tmp_path / "out", complete_from=str(model_folder))
    assert line.count("unexpected ") == 10
    assert "and 23 more" in line


class Code:
    """What a malicious pickle looks like: a call that runs while the file is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


def test_pickles_with_code_are_refused_and_the_code_does_not_run(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = saved({"state_dict": {f"{UNET}x": Code()}}, tmp_path)
    line = refusal(source, tmp_path / "out", complete_from=str(model_folder))
    assert "posix.system, which could run code" in line
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("length", [0, 10, 1000, -100])
def test_truncated_checkpoints_are_refused(
    length: int, checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model.ckpt"
    source.write_bytes(checkpoint.read_bytes()[:length])
    line = refusal(source, tmp_path / "out", complete_from=str(model_folder))
    assert "fetch the file again" in line


def test_a_checkpoint_needs_a_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    line = refusal(checkpoint, tmp_path / "out")
    assert "has no tokenizer; add --complete-from with a model" in line


def test_files_with_other_tensors_are_refused(model_folder: Path, tmp_path: Path) -> None:
    source = saved({"some.weight": torch.zeros(2)}, tmp_path)
    assert "has tensors of unknown names, such as some.weight" in refusal(source, tmp_path / "out")
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert "has a layout that cannot be converted" in refusal(tmp_path / "a.safetensors", tmp_path / "out")


def test_existing_targets_and_missing_sources_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert "already exists" in refusal(checkpoint, tmp_path / "there")
    assert "does not exist" in refusal(tmp_path / "nowhere.ckpt", tmp_path / "out")


def test_a_full_disk_leaves_no_partial_folder(checkpoint: Path, converted: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    target = checkpoint.parent / "full"
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from vinfinity.weights.convert import convert;"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), complete_from=sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(checkpoint), str(target), str(converted)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "OutputError" in done.stderr
    assert "full: cannot be written" in done.stderr
    assert not target.exists()
    assert [path.name for path in checkpoint.parent.iterdir() if path.name.endswith(".part")] == []
    assert issubclass(OutputError, VinfinityError)


# ---- folders ----


def pickled(folder: Path, part: str, name: str) -> None:
    """Replace the safetensors file of a part with a pickled one."""
    [path] = (folder / part).glob("*.safetensors")
    torch.save(load_file(path), folder / part / name)
    path.unlink()


def assert_same_model(ours: Path, reference: Path) -> None:
    for part, load in (("unet", load_unet), ("vae", load_vae), ("text_encoder", load_text_encoder)):
        one, other = (load(folder / part, **FP32).state_dict() for folder in (ours, reference))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in other), part


@pytest.mark.parametrize("suffix", ["bin", "pth"])
def test_pickled_folders_become_safetensors(
    suffix: str, model_folder: Path, own_model: Path, tmp_path: Path
) -> None:
    pickled(own_model, "unet", f"diffusion_pytorch_model.{suffix}")
    pickled(own_model, "vae", f"diffusion_pytorch_model.{suffix}")
    pickled(own_model, "text_encoder", f"pytorch_model.{suffix}")
    folder = convert(own_model, tmp_path / "out")
    assert not list(folder.rglob(f"*.{suffix}"))
    assert_same_model(folder, model_folder)
    check_weights(folder, prefer_fp16=False)
    assert read_card(str(folder)).defaults == read_card(str(model_folder)).defaults


def test_files_in_pytorchs_legacy_format_are_read(
    model_folder: Path, own_model: Path, tmp_path: Path
) -> None:
    path = own_model / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"), _use_new_zipfile_serialization=False)
    path.unlink()
    assert_same_model(convert(own_model, tmp_path / "out"), model_folder)


def test_pickled_shards_are_joined_and_full_precision_is_preferred(
    model_folder: Path, own_model: Path, tmp_path: Path
) -> None:
    path = own_model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    for index, some in enumerate((names[:50], names[50:])):
        torch.save({name: tensors[name] for name in some}, path.with_name(f"x-0000{index + 1}-of-00002.bin"))
    torch.save({name: x.half() for name, x in tensors.items()}, path.with_name("x.fp16.bin"))
    path.unlink()
    assert_same_model(convert(own_model, tmp_path / "out"), model_folder)
    (own_model / "unet" / "x-00002-of-00002.bin").unlink()
    line = refusal(own_model, tmp_path / "again")
    assert f"missing {names[50]}" in line or "missing" in line


@pytest.mark.parametrize("flat", [True, False])
def test_a_unet_alone_is_completed_from_another_model(flat: bool, model_folder: Path, tmp_path: Path) -> None:
    """The published VideoCrafter2 conversion is a UNet that is used with Zeroscope's other parts."""
    unet = fill(tiny_unet(), seed=7)
    source = tmp_path / "source"
    unet.save_pretrained(source if flat else source / "unet")
    assert "has no vae; add --complete-from with a model" in refusal(source, tmp_path / "out")
    folder = convert(source, tmp_path / "out", complete_from=str(model_folder))
    loaded = load_unet(folder / "unet", **FP32).state_dict()
    assert all(torch.equal(loaded[name], x) for name, x in unet.state_dict().items())
    check_weights(folder, prefer_fp16=False)


def test_a_denoiser_behind_a_broken_link_does_not_come_from_the_donor(
    own_model: Path, model_folder: Path, tmp_path: Path
) -> None:
    shutil.rmtree(own_model / "unet")
    (own_model / "unet").symlink_to("nowhere")
    assert str(own_model / "unet") in refusal(own_model, tmp_path / "out", complete_from=str(model_folder))


def test_a_card_is_that_of_the_denoisers_model_under_the_new_name(own_model: Path, tmp_path: Path) -> None:
    card = own_model / "card.json"
    card.write_text(json.dumps({"name": "donor", "trained_frames": 24, "size": "576x320"}))
    tiny_unet().save_pretrained(tmp_path / "unet")
    completed = read_card(str(convert(tmp_path / "unet", tmp_path / "new", complete_from=str(own_model))))
    assert (completed.name, completed.trained_frames, completed.defaults["size"]) == ("new", 16, "32x32")
    copied = read_card(str(convert(own_model, tmp_path / "copy")))
    assert (copied.name, copied.trained_frames, copied.defaults["size"]) == ("copy", 24, "576x320")


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "UNet3DVideoCrafterConditionModel", "fps_cond": True},
        {"_class_name": "UNetVideoCrafter"},
        {"_class_name": "UNet3DConditionModel"},
    ],
    ids=str,
)
def test_a_unet_of_videocrafter2s_conversions_takes_a_frame_rate(
    config: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    """Their classes have it by default, so that the file may not say it."""
    source = tmp_path / "source"
    tiny_unet().save_pretrained(source)
    weights, path = source / "diffusion_pytorch_model.safetensors", source / "config.json"
    embedding = fill(TimestepEmbedding(16, 64), seed=3).state_dict()
    save_file({**load_file(weights), **{f"fps_embedding.{k}": x for k, x in embedding.items()}}, weights)
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    folder = convert(source, tmp_path / "out", complete_from=str(model_folder))
    check_weights(folder, prefer_fp16=False)
    assert read_card(str(folder)).traits.denoiser.takes_fps
    loaded = load_unet(folder / "unet", **FP32).state_dict()
    assert torch.equal(loaded["fps_embedding.linear_1.weight"], embedding["linear_1.weight"])


def test_a_unet_of_another_architecture_is_refused_without_asking_for_other_parts(tmp_path: Path) -> None:
    config = {"_class_name": "UNet2DConditionModel", "down_block_types": ["DownBlock2D"] * 4}
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    assert "down_block_types: 'DownBlock2D' is not one of" in refusal(tmp_path / "source", tmp_path / "out")


def test_parts_of_different_models_are_refused(model_folder: Path, tmp_path: Path) -> None:
    tiny_unet(cross_attention_dim=24).save_pretrained(tmp_path / "source")
    line = refusal(tmp_path / "source", tmp_path / "out", complete_from=str(model_folder))
    assert "has 16 channels, but the UNet takes 24" in line


def test_incomplete_and_foreign_folders_are_refused(own_model: Path, tmp_path: Path) -> None:
    shutil.rmtree(own_model / "tokenizer")
    assert "has no tokenizer" in refusal(own_model, tmp_path / "out")
    (own_model / "tokenizer").mkdir()
    assert "has no tokenizer" in refusal(own_model, tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    assert "has no unet" in refusal(other, tmp_path / "out")
    (other / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    assert "is a FluxTransformer2DModel" in refusal(other, tmp_path / "out")
    (other / "config.json").write_text(
        json.dumps({"_class_name": "UNet3DConditionModel", "down_block_types": ["DownBlockMotion"]})
    )
    save_model(tmp_path / "whole")
    (other / "x.bin").touch()
    assert refusal(other, tmp_path / "out", complete_from=str(tmp_path / "whole"))


def test_the_command_line_converts_and_reports_in_one_line(
    checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "vinfinity", "models", "convert", str(checkpoint), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "has no tokenizer" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = subprocess.run([*command, "--complete-from", str(model_folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_weights(tmp_path / "out", prefer_fp16=False)
