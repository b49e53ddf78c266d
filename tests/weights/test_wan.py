"""Wan's files: LoRAs in all namings, the authors' own layout, and what is refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from oracles.reference import configure, tiny_unet
from oracles.wan import save_wan, tiny_transformer, tiny_wan_pipeline
from oracles.wan_autoencoder import tiny_wan_vae
from oracles.wan_text import save_tiny_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from vinfinity.errors import InputError
from vinfinity.job import prepare
from vinfinity.job_report import concerns
from vinfinity.models.family import TEXT_ENCODER
from vinfinity.models.wan.family import NETWORKS, TRANSFORMER
from vinfinity.models.wan.names import original_parameter
from vinfinity.models.wan.original import text_parameter, vae_parameter
from vinfinity.models.wan.vae_config import LATENT_DEVIATIONS, LATENT_MEANS
from vinfinity.weights.card import read_card
from vinfinity.weights.convert import convert
from vinfinity.weights.inspect import describe_model
from vinfinity.weights.load import check_weights, load_network
from vinfinity.weights.lora import lora_targets, open_loras, read_lora

MODULES = (
    "blocks.0.attn1.to_q",
    "blocks.1.attn2.to_out.0",
    "blocks.0.ffn.net.0.proj",
    "blocks.1.ffn.net.2",
    "condition_embedder.time_proj",
    "proj_out",
)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "tiny")


def original_module(module: str) -> str:
    return original_parameter(f"{module}.weight").removesuffix(".weight")


def flat(module: str) -> str:
    return module.replace(".", "_")


NAMINGS: dict[str, Callable[[str, str], str]] = {
    "diffusers": lambda module, end: f"transformer.{module}.lora_{'A' if end == 'down' else 'B'}.weight",
    "PEFT": lambda module, end: f"base_model.model.{module}.lora_{'A' if end == 'down' else 'B'}.weight",
    "authors": lambda module, end: f"diffusion_model.{original_module(module)}.lora_{end}.weight",
    "kohya": lambda module, end: f"lora_unet_{flat(original_module(module))}.lora_{end}.weight",
    "VideoX-Fun": lambda module, end: f"lora_unet__{flat(original_module(module))}.lora_{end}.weight",
    "LyCORIS": lambda module, end: f"lycoris_{flat(module)}.lora_{end}.weight",
    "LyCORIS, authors": lambda module, end: f"lycoris_{flat(original_module(module))}.lora_{end}.weight",
    "DiffSynth-Studio": (
        lambda module, end: (
            f"pipe.dit.{original_module(module)}.lora_{'A' if end == 'down' else 'B'}.default.weight"
        )
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_loras_are_merged_under_any_naming(naming: str, wan: Path, tmp_path: Path) -> None:
    before = load_file(wan / TRANSFORMER / "diffusion_pytorch_model.safetensors")
    file, expected = {}, dict(before)
    for module in MODULES:
        weight = before[f"{module}.weight"]
        down, up = torch.randn(3, weight.shape[1]), torch.randn(weight.shape[0], 3)
        file[NAMINGS[naming](module, "down")], file[NAMINGS[naming](module, "up")] = down, up
        expected[f"{module}.weight"] = weight + 0.5 * (up @ down)
    assert_merged(wan, file, expected, tmp_path)


def assert_merged(wan: Path, file: dict[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    """Return the weights with this LoRA at 0.5 are the expected ones."""
    save_file(file, folder / "lora.safetensors")
    lora = read_lora(f"{folder}/lora.safetensors:0.5", lora_targets(read_card(str(wan))))
    with open_loras([lora], TRANSFORMER) as changes:
        network = load_network(
            NETWORKS[TRANSFORMER], wan / TRANSFORMER, device="cpu", dtype=torch.float32, changes=changes
        )
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("table", ["diff_m", "modulation.diff"])
def test_differences_of_tables_norms_and_biases_are_merged(table: str, wan: Path, tmp_path: Path) -> None:
    """LightX2V's LoRAs have all of these. table: as LightX2V or ComfyUI names the difference of one."""
    before = load_file(wan / TRANSFORMER / "diffusion_pytorch_model.safetensors")
    ends = {"scale_shift_table": table, "weight": "diff", "bias": "diff_b"}
    file, expected = {}, dict(before)
    for name in (
        "scale_shift_table",
        "blocks.0.scale_shift_table",
        "blocks.1.scale_shift_table",
        "blocks.0.norm2.weight",
        "blocks.1.attn1.norm_q.weight",
        "blocks.0.ffn.net.2.bias",
    ):
        difference = torch.randn(before[name].shape)
        module, _, _ = original_parameter(name).rpartition(".")
        file[f"diffusion_model.{module}.{ends[name.rpartition('.')[2]]}"] = difference
        expected[name] = before[name] + 0.5 * difference
    weight = before["blocks.0.attn1.to_q.weight"]
    down, up = torch.randn(3, weight.shape[1]), torch.randn(weight.shape[0], 3)
    file |= {
        f"diffusion_model.blocks.0.self_attn.q.lora_{end}.weight": x
        for end, x in (("down", down), ("up", up))
    }
    expected["blocks.0.attn1.to_q.weight"] = weight + 0.5 * (up @ down)
    assert_merged(wan, file, expected, tmp_path)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_a_token_embedding_that_a_file_has_twice_is_the_shared_one(
    ending: str, wan: Path, tmp_path: Path
) -> None:
    """So do some versions of transformers write it, with zeros in the other place."""
    model = Path(shutil.copytree(wan, tmp_path / "twice"))
    path = model / TEXT_ENCODER / "model.safetensors"
    before = load_file(path)
    twice = {**before, "encoder.embed_tokens.weight": torch.zeros_like(before["shared.weight"])}
    if ending == ".bin":
        path.unlink()
        torch.save(twice, path.with_name("pytorch_model.bin"))
        model = convert(model, tmp_path / "converted")
    else:
        save_file(twice, path)
    check_weights(model, prefer_fp16=False)
    encoder = load_network(
        NETWORKS[TEXT_ENCODER], model / TEXT_ENCODER, device="cpu", dtype=torch.float32
    ).state_dict()
    assert encoder.keys() == before.keys()
    assert all(torch.equal(encoder[name], x) for name, x in before.items())


def test_time_embedder_tables_and_norms_stay_in_fp32(wan: Path) -> None:
    network = load_network(NETWORKS[TRANSFORMER], wan / TRANSFORMER, device="cpu", dtype=torch.bfloat16)
    exact = {name for name, tensor in network.state_dict().items() if tensor.dtype == torch.float32}
    reference = tiny_transformer()
    kept = reference._keep_in_fp32_modules
    assert exact == {name for name in reference.state_dict() if any(part in kept for part in name.split("."))}


def test_the_authors_folder_is_converted(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path / "original" / "google" / "umt5-xxl")
    pipeline = tiny_wan_pipeline(
        tokenizer,
        in_channels=16,
        out_channels=16,
        num_attention_heads=1,
        attention_head_dim=128,
        freq_dim=256,
    )
    pipeline.register_modules(
        vae=tiny_wan_vae(z_dim=16, latents_mean=list(LATENT_MEANS), latents_std=list(LATENT_DEVIATIONS))
    )
    pipeline.save_pretrained(tmp_path / "diffusers")
    original = tmp_path / "original"
    whole = renamed(pipeline.transformer.state_dict(), original_parameter)
    names = sorted(whole)
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        save_file(
            {name: whole[name] for name in some},
            original / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors",
        )
    (original / "config.json").write_text(json.dumps({"_class_name": "WanModel", "model_type": "t2v"}))
    torch.save(renamed(pipeline.vae.state_dict(), vae_parameter), original / "Wan2.1_VAE.pth")
    text = {k: v for k, v in pipeline.text_encoder.state_dict().items() if "embed_tokens" not in k}
    torch.save(renamed(text, text_parameter), original / "models_t5_umt5-xxl-enc-bf16.pth")
    made = convert(original, tmp_path / "made")
    for part, stem in ((TRANSFORMER, "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        ours, theirs = (
            load_file(root / part / f"{stem}.safetensors") for root in (made, tmp_path / "diffusers")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    card = read_card(str(made))
    assert card.configs == read_card(str(tmp_path / "diffusers")).configs
    prepare(configure(made, device="cpu").config)


def test_a_single_transformer_takes_its_other_parts_from_another_model(tmp_path: Path) -> None:
    donor = save_wan(tmp_path / "donor", num_attention_heads=1, attention_head_dim=128, freq_dim=256)
    state = load_file(donor / TRANSFORMER / "diffusion_pytorch_model.safetensors")
    prefixed = {f"model.diffusion_model.{name}": x for name, x in renamed(state, original_parameter).items()}
    save_file(prefixed, tmp_path / "single.safetensors")
    with pytest.raises(InputError, match="has no vae"):
        convert(tmp_path / "single.safetensors", tmp_path / "alone")
    made = convert(tmp_path / "single.safetensors", tmp_path / "made", complete_from=str(donor))
    ours = load_file(made / TRANSFORMER / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(ours[name], state[name]) for name in state)


def renamed(state: Mapping[str, Tensor], name: Callable[[str], str]) -> dict[str, Tensor]:
    return {name(parameter): tensor.clone() for parameter, tensor in state.items()}


# ---- refusals ----


def from_another_layout(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        convert(path, path.parent / "new")
    return str(raised.value)


def from_a_run(path: Path) -> str:
    return refusal(path)


def from_show(path: Path) -> str:
    [line] = describe_model(path)[1]
    return line


@pytest.mark.parametrize(
    ("command", "source", "line"),
    [
        (
            from_another_layout,
            "wan.safetensors",
            "add --complete-from with a model that has one, such as wan2.1-",
        ),
        (from_another_layout, "unet", "add --complete-from with a model that has one, such as modelscope"),
        (
            from_a_run,
            "wan.safetensors",
            "is a file; use a model folder; vinfinity models convert makes one",
        ),
        (
            from_a_run,
            "authors",
            "has no unet or transformer; use a model folder; vinfinity models convert",
        ),
        (from_a_run, "unet", "has no unet or transformer; use a model folder; vinfinity models convert"),
        (
            from_show,
            "authors",
            "has the class WanModel, which is neither a known decoder nor a whole model; vin",
        ),
        (
            from_show,
            "unet",
            "has the class UNet3DConditionModel, which is neither a known decoder nor a whole",
        ),
        (from_show, "empty", "has no unet or transformer; use a model folder; vinfinity models convert"),
    ],
)
def test_models_in_other_layouts_are_sent_to_their_conversion(
    command: Callable[[Path], str], source: str, line: str, tmp_path: Path
) -> None:
    """Not to models of the other family."""
    transformer = tiny_transformer(num_attention_heads=1, attention_head_dim=128, freq_dim=256)
    state = renamed(transformer.state_dict(), original_parameter)
    save_file(state, tmp_path / "wan.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "authors").mkdir()
    save_file(state, tmp_path / "authors" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "authors" / "config.json").write_text(json.dumps({"_class_name": "WanModel"}))
    tiny_unet().save_pretrained(tmp_path / "unet")
    said = command(tmp_path / source)
    assert "\n" not in said
    assert line in said


def refusal(model: Path, **flags: object) -> str:
    with pytest.raises(InputError) as raised:
        prepare(configure(model, device="cpu", **flags).config)
    line = str(raised.value)
    assert raised.value.exit_code == 2
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("index", "line"),
    [
        (
            {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875},
            "a model of Wan 2.2",
        ),
        ({"expand_timesteps": True}, "a model of Wan 2.2"),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "an image-to-video model"),
    ],
)
def test_other_models_of_wan_are_named(
    index: dict[str, object], line: str, wan: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(wan, tmp_path / "other"))
    path = model / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **index}))
    assert line in refusal(model)


@pytest.mark.parametrize(
    ("changes", "sampler", "concern"),
    [
        ({"algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver++", None),
        ({"algorithm_type": "dpmsolver"}, "dpmsolver++", 'ignores algorithm_type: "dpmsolver"'),
        ({"solver_order": 3}, "dpmsolver++", "ignores solver_order: 3"),
        ({"use_karras_sigmas": True}, "dpmsolver++", "ignores use_karras_sigmas: true"),
    ],
    ids=str,
)
def test_a_scheduler_of_another_kind_gives_its_sampler_or_a_warning(
    changes: dict[str, object], sampler: str, concern: str | None, wan: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(wan, tmp_path / "other"))
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    values = {"_class_name": "DPMSolverMultistepScheduler", **flow, **changes}
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    config = configure(model, device="cpu", size="32x16", frames=5).config
    assert config.sampler == sampler
    found = [line for line in concerns(prepare(config)) if line.startswith("scheduler: ")]
    if concern is None:
        assert found == []
    else:
        assert concern in found[0]


def test_an_image_to_video_transformer_is_named(wan: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(wan, tmp_path / "other"))
    path = model / TRANSFORMER / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_dim": 1280}))
    assert "image-to-video" in refusal(model)


def test_loras_of_the_other_family_are_refused(wan: Path, model_folder: Path, tmp_path: Path) -> None:
    wan_lora, unet_lora = tmp_path / "wan.safetensors", tmp_path / "unet.safetensors"
    factors = {"down": torch.zeros(2, 24), "up": torch.zeros(24, 2)}
    save_file({NAMINGS["diffusers"]("blocks.0.attn1.to_q", end): x for end, x in factors.items()}, wan_lora)
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora"
    save_file({f"{module}.{end}.weight": x for end, x in factors.items()}, unet_lora)
    assert "a diffusion transformer" in refusal(model_folder, lora=[str(wan_lora)])
    assert "lora" in refusal(wan, lora=[str(unet_lora)])


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        ("transformer.blocks.2.attn1.to_q.lora_A.weight", "is for another model: no blocks.2.attn1.to_q"),
        ("diffusion_model.blocks.2.self_attn.q.lora_A.weight", "another model: no blocks.2.self_attn.q in"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "another model: no transformer_blocks"),
        ("transformer.blocks.0.attn1.to_q.new_A", "unexpected transformer.blocks.0.attn1.to_q.new_A"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "holds FLUX, Stable Diffusion 3"),
        ("transformer.blocks.0.attn1.to_q.hra_u", "holds HRA"),
    ],
)
def test_a_lora_of_another_transformer_says_what_does_not_fit(
    tensor: str, line: str, wan: Path, tmp_path: Path
) -> None:
    save_file({tensor: torch.zeros(2, 24)}, tmp_path / "a.safetensors")
    assert line in refusal(wan, lora=[str(tmp_path / "a.safetensors")])


def test_a_tokenizer_without_tokenizer_json_is_named(wan: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(wan, tmp_path / "other"))
    (model / "tokenizer" / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(model)


def test_reuse_of_features_is_refused_since_there_are_none(wan: Path) -> None:
    with pytest.raises(InputError, match=r"reuse\.interval"):
        prepare(configure(wan, "reuse.interval=2", device="cpu").config)
