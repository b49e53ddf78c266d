"""LoRAs merged while loading, against PEFT on diffusers' UNet; T2V-Turbo's factors against its authors' code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet3DConditionModel
from oracles import lvdm
from oracles.lora_files import LAYOUTS, RESNETS, TARGETS, factors, merged, trained
from oracles.networks import load_unet, lvdm_folder, one_rank, our_unet
from oracles.reference import configure, relative_error, save_model, tiny_pipeline, tiny_unet
from oracles.runs import STEPS, config_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vinfinity.errors import InputError
from vinfinity.job import prepare
from vinfinity.models.frame_text import FrameText
from vinfinity.pipeline import Pipeline
from vinfinity.run import run
from vinfinity.weights.card import read_card
from vinfinity.weights.convert import convert
from vinfinity.weights.lora import lora_targets, open_loras, read_lora
from vinfinity.weights.named_files import split_weight

CLOSE = 1e-5
Note = Callable[[str, float], None]


def loaded(folder: Path, *texts: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    loras = [read_lora(text, lora_targets(read_card(str(folder)))) for text in texts]
    with open_loras(loras, "unet") as changes:
        return load_unet(folder / "unet", device="cpu", dtype=dtype, changes=changes).state_dict()


def worst(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    assert ours.keys() == reference.keys()
    return max((ours[name] - reference[name]).abs().max().item() for name in reference)


@pytest.fixture
def base(model_folder: Path) -> UNet3DConditionModel:
    return UNet3DConditionModel.from_pretrained(model_folder / "unet").eval()


@pytest.mark.parametrize("targets", TARGETS)
def test_merged_adapters_match_peft(
    targets: str, base: UNet3DConditionModel, model_folder: Path, tmp_path: Path, record_worst: Note
) -> None:
    model = trained(base, TARGETS[targets])
    model.save_pretrained(tmp_path)
    reference = merged(model)
    assert worst(reference, base.state_dict()) > 1e-3
    error = worst(loaded(model_folder, str(tmp_path / "adapter_model.safetensors")), reference)
    assert error <= CLOSE
    record_worst(f"LoRA of PEFT, {targets}", error)


def test_outputs_match_peft(
    base: UNet3DConditionModel, model_folder: Path, tmp_path: Path, record_worst: Note
) -> None:
    model = trained(base, TARGETS["all kinds"])
    model.save_pretrained(tmp_path)
    ours = our_unet(base)
    ours.load_state_dict(loaded(model_folder, str(tmp_path / "adapter_model.safetensors")))
    x, text, t = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 5, 16), torch.tensor([300.0])
    with torch.no_grad():
        expected = model(x, t, text).sample
    error = relative_error(ours(x, t, FrameText.same(text), one_rank(3)), expected)
    assert error <= CLOSE
    record_worst("UNet with LoRA of PEFT", error)


def test_several_weighted_loras_add_up(
    base: UNet3DConditionModel, model_folder: Path, tmp_path: Path
) -> None:
    models = {"a": trained(base, ["to_q"], lora_alpha=3), "b": trained(base, ["to_q", "to_k"], lora_alpha=3)}
    for name, model in models.items():
        save_file(factors(model), tmp_path / f"{name}.safetensors")
    ours = loaded(model_folder, f"{tmp_path}/a.safetensors:0.5", f"{tmp_path}/b.safetensors:-2")
    a, b = (merged(model) for model in models.values())
    for name, tensor in base.state_dict().items():
        expected = tensor + 0.5 * (a[name] - tensor) - 2 * (b[name] - tensor)
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=CLOSE)


def test_half_precision_is_rounded_once_after_merging(
    base: UNet3DConditionModel, model_folder: Path, tmp_path: Path
) -> None:
    model = trained(base, ["to_q"], lora_alpha=3)
    save_file(factors(model), tmp_path / "a.safetensors")
    ours = loaded(model_folder, str(tmp_path / "a.safetensors"), dtype=torch.bfloat16)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(ours[name], merged(model)[name].bfloat16())


# ---- runs ----


def test_runs_use_loras_and_their_weights(
    base: UNet3DConditionModel, model_folder: Path, tmp_path: Path
) -> None:
    save_file(factors(trained(base, ["to_q", "to_v"])), tmp_path / "a.safetensors")

    def latents(*loras: str) -> Tensor:
        path = tmp_path / "latents.safetensors"
        flags = {"frames": 2, "size": "16x16", "save_latents": str(path), "overwrite": True, "device": "cpu"}
        resolved = configure(model_folder, out=str(tmp_path / "v.mp4"), lora=list(loras), **flags)
        run(resolved.config)
        return load_file(path)["latents"]

    file = f"{tmp_path}/a.safetensors"
    plain, none, half, full = latents(), latents(f"{file}:0"), latents(f"{file}:0.5"), latents(file)
    assert torch.equal(plain, none)
    assert relative_error(half, plain) > 1e-4
    assert relative_error(full, half) > 1e-4


def test_runs_use_what_a_lora_holds_for_the_text_encoder(model_folder: Path, tmp_path: Path) -> None:
    """The same as a model whose weights diffusers changed, from the command line's run and from Python."""
    written = LAYOUTS["kohya, text encoder"](tmp_path)
    pipeline = tiny_pipeline()
    pipeline.unet.load_state_dict(written.unet)
    without_text = save_model(tmp_path / "without text", pipeline)
    pipeline.text_encoder.load_state_dict(written.text_encoder)
    reference = save_model(tmp_path / "merged", pipeline)

    def latents(model: Path, **settings: object) -> Tensor:
        path = tmp_path / "latents.safetensors"
        run(config_of(model, tmp_path / "v.mp4", save_latents=str(path), overwrite=True, **settings))
        return load_file(path)["latents"]

    ours, expected = latents(model_folder, lora=[written.text]), latents(reference)
    assert relative_error(ours, expected) <= CLOSE
    assert relative_error(latents(without_text), expected) > 1e-4
    pipe = Pipeline.from_pretrained(model_folder, lora=[written.text], device="cpu", dtype="fp32")
    video = pipe("a red ball", frames=3, size="32x32", steps=STEPS)
    assert relative_error(video.latents, expected) <= CLOSE


def test_a_lora_whose_settings_changed_is_another_one(model_folder: Path, tmp_path: Path) -> None:
    path = LAYOUTS["PEFT"](tmp_path).text

    def digest() -> str:
        return prepare(configure(model_folder, lora=[path], device="cpu").config).weights_digest

    first, config = digest(), tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 6}))
    assert digest() != first


def test_digest_of_the_weights_tells_loras_apart(
    base: UNet3DConditionModel, model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(factors(trained(base, ["to_q"])), path)

    def digest(*loras: str) -> str:
        return prepare(configure(model_folder, lora=list(loras), device="cpu").config).weights_digest

    first = digest(str(path))
    assert first != digest()
    save_file({key: 2 * x for key, x in load_file(path).items()}, path)
    assert first != digest(str(path))


def test_the_weight_follows_the_last_colon() -> None:
    assert split_weight("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert split_weight("a:b.safetensors:-0.25") == (Path("a:b.safetensors"), -0.25)
    assert split_weight("a:b.safetensors") == (Path("a:b.safetensors"), 1.0)
    for weight in ("nan", "inf", "1e999", "010", "1_0", "１", " 1", "00.5"):
        with pytest.raises(InputError, match=r"^lora: .* has a weight that is not a finite decimal number"):
            split_weight(f"a.safetensors:{weight}")


# ---- refused files ----


def refusal(text: str, folder: Path | str = "mini") -> str:
    with pytest.raises(InputError) as raised:
        read_lora(text, lora_targets(read_card(str(folder))))
    assert raised.value.exit_code == 2
    assert raised.value.field == "lora"
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_a_lora_for_another_model_is_refused_naming_its_layers(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    wide = trained(tiny_unet(block_out_channels=(32, 32)), ["to_q"])
    save_file(factors(wide), path)
    assert "is for another model" in refusal(str(path), model_folder)
    assert "the factors" in refusal(str(path), model_folder)
    deep = trained(tiny_unet(layers_per_block=2), RESNETS)
    save_file(factors(deep), path)
    line = refusal(str(path), model_folder)
    assert "no down_blocks.0.resnets.1.conv1 in this model" in line
    assert line.count("in this model") <= 10


def test_a_run_refuses_such_a_lora_before_loading_weights(model_folder: Path, tmp_path: Path) -> None:
    save_file(factors(trained(tiny_unet(block_out_channels=(32, 32)), ["to_q"])), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is for another model"):
        prepare(configure(model_folder, lora=[str(tmp_path / "a.safetensors")], device="cpu").config)


# ---- T2V-Turbo ----

RANK = 4


def inject(unet: lvdm.UNetModel) -> list[Tensor]:
    """Return factors for every linear layer and convolution in the order of named_modules, up before down, and the
    same merged into the UNet (inject_trainable_lora_extended, save_lora_weight and collapse_lora of utils/lora.py).
    """
    weights = []
    for index, module in enumerate(unet.modules()):
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            continue
        generator = torch.Generator().manual_seed(index)
        out, inputs, *kernel = module.weight.shape
        rank = min(RANK, out, inputs)
        up = 0.1 * torch.randn(out, rank, *[1] * len(kernel), generator=generator)
        down = 0.1 * torch.randn(rank, inputs, *kernel, generator=generator)
        addition = up.flatten(start_dim=1) @ down.flatten(start_dim=1)
        module.weight.data = module.weight.data + addition.reshape(module.weight.shape)
        weights += [up, down]
    return weights


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, lvdm.UNetModel]:
    """Return a VideoCrafter2-like model in LVDM's layout, and its folder."""
    return lvdm_folder(tmp_path_factory.mktemp("turbo"))


def test_t2v_turbos_lora_becomes_a_model(
    base_model: tuple[Path, lvdm.UNetModel], tmp_path: Path, record_worst: Note
) -> None:
    folder, reference = base_model
    distilled = lvdm.UNetModel(context=16, mult=(1, 2, 2), attention=(1, 2), condition=256)
    distilled.load_state_dict(reference.state_dict(), strict=False)
    nn.init.zeros_(distilled.time_cond_proj.weight)
    distilled.eval().requires_grad_(False)
    torch.save([nn.Parameter(x) for x in inject(distilled)], tmp_path / "unet_lora.pt")
    out = convert(tmp_path / "unet_lora.pt", tmp_path / "t2v-turbo", complete_from=str(folder))
    ours = load_unet(out / "unet", device="cpu", dtype=torch.float32)
    x, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 16)
    t, fps, condition = torch.tensor([749.0]), torch.tensor([16.0]), torch.randn(1, 256)
    expected = distilled(x, t, text, fps, condition)
    error = relative_error(
        ours(x, t, FrameText.same(text), one_rank(3), fps=fps, condition=condition), expected
    )
    assert error <= CLOSE
    record_worst("T2V-Turbo", error)
    assert relative_error(expected, reference(x, t, text, fps)) > 1e-2
    card = read_card(str(out))
    assert card.traits.denoiser.guidance_width == 256
    assert (card.defaults["sampler"], card.defaults["steps"]) == ("lcm", 4)


def test_t2v_turbos_lora_needs_its_own_base_model(
    base_model: tuple[Path, lvdm.UNetModel], model_folder: Path, tmp_path: Path
) -> None:
    folder, _ = base_model
    distilled = lvdm.UNetModel(context=16, mult=(1, 2, 2), attention=(1, 2), condition=256)
    weights = inject(distilled)
    path = tmp_path / "unet_lora.pt"

    def line(base: Path | None) -> str:
        with pytest.raises(InputError) as raised:
            convert(path, tmp_path / "out", complete_from=None if base is None else str(base))
        assert not (tmp_path / "out").exists()
        return str(raised.value)

    torch.save(weights, path)
    assert "is a LoRA, not a model; add --complete-from" in line(None)
    assert "tensors, not" in line(model_folder)
    torch.save(weights[:-2], path)
    assert f"{len(weights) - 2} tensors, not {len(weights)}" in line(folder)
    torch.save([*weights[2:4], *weights[:2], *weights[4:]], path)
    assert "pair 0 is " in line(folder)
