"""Weights from files: every layout that models have, and one-line errors for what does not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from oracles.networks import load_text_encoder, load_unet, load_vae
from oracles.reference import fill, tiny_text_encoder, tiny_unet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.errors import WeightsError
from vinfinity.system.safetensors import read_header
from vinfinity.weights.load import load_scheduler

SINGLE = "diffusion_pytorch_model.safetensors"
LOADERS: dict[str, Callable[..., nn.Module]] = {
    "unet": load_unet,
    "vae": load_vae,
    "text_encoder": load_text_encoder,
}
WEIGHTS = {"unet": SINGLE, "vae": SINGLE, "text_encoder": "model.safetensors"}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return load_unet(folder, device="cpu", dtype=dtype).state_dict()


def cast(unet: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a UNet's tensors in another type; the time embedding and the group norms stay in fp32."""
    norms = [f"{name}." for name, layer in unet.named_modules() if isinstance(layer, nn.GroupNorm)]
    kept = ("time_embedding.", *norms)
    return {
        name: x.float() if name.startswith(kept) else x.to(dtype) for name, x in unet.state_dict().items()
    }


def assert_same(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        assert torch.equal(ours[name], tensor), name


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def refusal(folder: Path, part: str = "unet", dtype: torch.dtype = torch.float32) -> str:
    """Return the one-line error of a part of a model that is refused."""
    with pytest.raises(WeightsError) as raised:
        LOADERS[part](folder / part, device="cpu", dtype=dtype)
    assert raised.value.exit_code == 2
    line = str(raised.value)
    assert line.startswith(f"model: {folder}")
    assert "\n" not in line
    return line


def shard(folder: Path, unet: UNet3DConditionModel, **options: Any) -> None:
    unet.save_pretrained(folder, max_shard_size="100KB", **options)
    assert len(list(folder.glob("*.safetensors"))) > 1


# ---- layouts ----


def test_a_single_file_is_loaded_completely(own_model: Path) -> None:
    assert_same(load(own_model / "unet"), load_file(own_model / "unet" / SINGLE))


def test_weights_are_ready_for_inference(own_model: Path) -> None:
    for part, loader in LOADERS.items():
        module = loader(own_model / part, device="cpu", dtype=torch.float32)
        assert not module.training
        assert not any(p.requires_grad or p.is_meta for p in module.parameters())


def test_sharded_files_are_joined_by_their_index(tmp_path: Path) -> None:
    reference = tiny_unet()
    shard(tmp_path, reference)
    assert_same(load(tmp_path), reference.state_dict())


@pytest.mark.parametrize("sharded", [False, True])
def test_half_precision_files_alone_can_be_loaded_in_any_dtype(sharded: bool, tmp_path: Path) -> None:
    reference = tiny_unet().half()
    if sharded:
        shard(tmp_path, reference, variant="fp16")
    else:
        reference.save_pretrained(tmp_path, variant="fp16")
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        assert_same(load(tmp_path, dtype), cast(reference, dtype))


@pytest.mark.parametrize("sharded", [False, True])
def test_files_of_the_requested_precision_are_preferred(sharded: bool, tmp_path: Path) -> None:
    full, half = fill(tiny_unet(), seed=1), fill(tiny_unet(), seed=2).half()
    if sharded:
        shard(tmp_path, full)
        half.save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB")
    else:
        full.save_pretrained(tmp_path)
        half.save_pretrained(tmp_path, variant="fp16")
    assert_same(load(tmp_path, torch.float32), full.state_dict())
    for dtype in (torch.float16, torch.bfloat16):
        assert_same(load(tmp_path, dtype), cast(half, dtype))


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
    ],
)
def test_both_spellings_of_a_variants_index_are_recognised(name: str, tmp_path: Path) -> None:
    reference = tiny_unet().half()
    shard(tmp_path, reference, variant="fp16")
    [index] = tmp_path.glob("*.index*.json")
    index.rename(tmp_path / name)
    assert_same(load(tmp_path, torch.float16), reference.state_dict())


def test_old_names_of_the_autoencoders_attention_are_understood(own_model: Path) -> None:
    path = own_model / "vae" / SINGLE
    expected = load_file(path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            for new, before in old.items():
                if f".attentions.0.{new}." in name:
                    tensors[name.replace(f".{new}.", f".{before}.")] = tensors.pop(name)

    rewrite(path, rename)
    assert sum("proj_attn" in name for name in load_file(path)) == 4
    assert_same(load_vae(own_model / "vae", device="cpu", dtype=torch.float32).state_dict(), expected)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("positions", [True, False])
def test_text_encoders_in_old_and_new_files_are_equal(prefix: bool, positions: bool, own_model: Path) -> None:
    path = own_model / "text_encoder" / "model.safetensors"
    bare = {name.removeprefix("text_model."): x for name, x in tiny_text_encoder().state_dict().items()}
    before = "text_model." if prefix else ""
    tensors = {before + name: x.contiguous() for name, x in bare.items()}
    if positions:
        tensors[f"{before}embeddings.position_ids"] = torch.arange(16)[None]
    save_file(tensors, path)
    ours = load_text_encoder(own_model / "text_encoder", device="cpu", dtype=torch.float32).state_dict()
    assert_same(ours, {f"text_model.{name}": x for name, x in bare.items()})


def test_scheduler_settings_are_read(own_model: Path) -> None:
    config = load_scheduler(own_model / "scheduler")
    assert isinstance(config, SchedulerConfig)
    assert (config.beta_schedule, config.beta_end, config.steps_offset) == ("scaled_linear", 0.012, 1)
    assert not config.clip_sample


def test_headers_list_names_types_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.zeros(2, 3).half(), "b": torch.zeros(())}, path, metadata={"format": "pt"})
    entries = read_header(path)
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        "a": ("F16", (2, 3)),
        "b": ("F32", ()),
    }


# ---- what does not fit ----


@pytest.mark.parametrize("part", LOADERS)
def test_missing_unexpected_and_misshapen_keys_are_all_listed(part: str, own_model: Path) -> None:
    path = own_model / part / WEIGHTS[part]
    # errors name the parameters of the network, not the tensors of the text encoder's file
    bare = part == "text_encoder" and not any(name.startswith("text_model.") for name in load_file(path))
    before = "text_model." if bare else ""
    names = sorted(name for name, x in load_file(path).items() if x.dim() > 1)

    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop(names[0])
        tensors[names[1]] = torch.zeros(3, 5)
        tensors["surplus.weight"] = torch.zeros(2)

    rewrite(path, change)
    line = refusal(own_model, part)
    assert f"missing {before}{names[0]}" in line
    assert f"unexpected {before}surplus.weight" in line
    assert f"{before}{names[1]} is 3x5, not " in line
    assert "more" not in line


def test_long_lists_show_ten_and_a_count(own_model: Path) -> None:
    path = own_model / "unet" / SINGLE
    removed = sorted(load_file(path))[:23]

    def change(tensors: dict[str, Tensor]) -> None:
        for name in removed:
            del tensors[name]

    rewrite(path, change)
    line = refusal(own_model)
    assert line.count("missing ") == 10
    assert "and 13 more" in line


def test_weights_of_another_model_are_refused(own_model: Path) -> None:
    tiny_unet(block_out_channels=(32, 32)).save_pretrained(own_model / "other")
    shutil.copy(own_model / "other" / SINGLE, own_model / "unet" / SINGLE)
    assert "does not fit its config.json" in refusal(own_model)


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1])
@pytest.mark.parametrize("part", LOADERS)
def test_truncated_files_are_refused(part: str, length: int, own_model: Path) -> None:
    path = own_model / part / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[:length])
    assert "truncated" in refusal(own_model, part)


def test_the_size_of_a_truncated_file_is_reported(own_model: Path) -> None:
    path = own_model / "unet" / SINGLE
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{size - 1000:,} of {size:,} bytes" in refusal(own_model)


@pytest.mark.parametrize(
    "header",
    [
        b"no json at all",
        b"[1, 2]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
        b'{"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]}}',
        b"\xff\xfe\x00",
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}',
    ],
    ids=str,
)
def test_damaged_headers_are_refused(header: bytes, own_model: Path) -> None:
    path = own_model / "unet" / SINGLE
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "damaged header" in refusal(own_model)


def test_files_of_another_format_are_refused(own_model: Path) -> None:
    (own_model / "unet" / SINGLE).write_bytes(b"\x80\x02}q\x00." * 100)
    assert "not a safetensors file" in refusal(own_model)


def test_pickled_weights_alone_are_refused(own_model: Path) -> None:
    path = own_model / "unet" / SINGLE
    path.rename(path.with_suffix(".bin"))
    line = refusal(own_model)
    assert "only as diffusion_pytorch_model.bin" in line
    assert "convert them to safetensors" in line


@pytest.mark.parametrize("part", LOADERS)
def test_missing_weights_are_named(part: str, own_model: Path) -> None:
    (own_model / part / WEIGHTS[part]).unlink()
    assert f"has no weights; put {WEIGHTS[part]} there" in refusal(own_model, part)


@pytest.mark.parametrize("part", LOADERS)
def test_missing_configuration_is_named(part: str, own_model: Path) -> None:
    (own_model / part / "config.json").unlink()
    assert "config.json is missing" in refusal(own_model, part)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"unet"'])
def test_damaged_configuration_is_named(text: str, own_model: Path) -> None:
    (own_model / "unet" / "config.json").write_text(text, encoding="utf-8")
    assert "config.json" in refusal(own_model)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"down_block_types": ["CrossAttnDownBlockMotion", "DownBlock3D"]}),
        ("unet", {"block_out_channels": 16}),
        ("unet", {"norm_num_groups": "eight"}),
        ("unet", {"layers_per_block": "two"}),
        ("vae", {"act_fn": "sine"}),
        ("text_encoder", {"hidden_act": "relu"}),
        ("text_encoder", {"num_attention_heads": 3}),
    ],
    ids=str,
)
def test_unsupported_configurations_are_refused_naming_the_key(
    part: str, changes: dict[str, Any], own_model: Path
) -> None:
    path = own_model / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    line = refusal(own_model, part)
    assert "use a model of a supported kind" in line
    assert f"{next(iter(changes))}: " in line


def test_unsupported_schedulers_are_refused_naming_the_key(own_model: Path) -> None:
    path = own_model / "scheduler" / "scheduler_config.json"
    path.write_text('{"use_flow_sigmas": true}', encoding="utf-8")
    with pytest.raises(WeightsError, match="use_flow_sigmas: True is not supported"):
        load_scheduler(own_model / "scheduler")


def test_missing_and_incomplete_shards_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "unet"
    shard(folder, tiny_unet())
    second = sorted(folder.glob("*.safetensors"))[1]
    [name, *_] = read_header(second)
    rewrite(second, lambda tensors: tensors.update(other=tensors.pop(name)))
    assert f"lists {name}, which its shard lacks" in refusal(tmp_path / "model")
    second.unlink()
    assert second.name in refusal(tmp_path / "model")


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}'])
def test_damaged_index_is_named(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "model" / "unet"
    shard(folder, tiny_unet())
    (folder / f"{SINGLE}.index.json").write_text(text, encoding="utf-8")
    assert f"{SINGLE}.index.json" in refusal(tmp_path / "model")
