"""Every kind of LoRA file: merged as by the library that made it, or rejected in one line that says what it holds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from oracles import lvdm
from oracles.lora_files import (
    LAYOUTS,
    TARGETS,
    base_states,
    dotted,
    factors,
    kohya_name,
    low_rank,
    save,
    trained,
)
from oracles.networks import load_text_encoder, load_unet, lvdm_folder, one_rank
from oracles.reference import relative_error
from oracles.refused_loras import REFUSED
from torch import Tensor, nn

from vinfinity.errors import InputError
from vinfinity.models.frame_text import FrameText
from vinfinity.models.unet3d.names import text_name
from vinfinity.weights.card import read_card
from vinfinity.weights.lora import lora_targets, open_loras, read_lora

CLOSE = 1e-5


def loaded(folder: Path, text: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of both networks with a LoRA."""
    lora = read_lora(text, lora_targets(read_card(str(folder))))
    with open_loras([lora], "unet") as changes:
        unet = load_unet(folder / "unet", device="cpu", dtype=torch.float32, changes=changes)
    with open_loras([lora], "text_encoder") as changes:
        text_encoder = load_text_encoder(
            folder / "text_encoder", device="cpu", dtype=torch.float32, changes=changes
        )
    return unet.state_dict(), text_encoder.state_dict()


def worst(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    named = {name if name in ours else text_name(name) or "": x for name, x in reference.items()}
    assert ours.keys() == named.keys()
    return max((ours[name] - named[name]).abs().max().item() for name in named)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_as_by_the_library_that_made_it(
    layout: str, model_folder: Path, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    written = LAYOUTS[layout](tmp_path)
    bases = base_states()
    changed = [
        worst(now, base) for now, base in zip((written.unet, written.text_encoder), bases, strict=True)
    ]
    assert max(changed) > 100 * CLOSE, "the file changes next to nothing"
    networks = loaded(model_folder, written.text)
    error = max(worst(networks[0], written.unet), worst(networks[1], written.text_encoder))
    assert error <= CLOSE
    record_worst(f"LoRA file, {layout}", error)


@pytest.mark.parametrize("file", REFUSED)
def test_refused_in_one_line_that_says_what_it_holds(file: str, model_folder: Path, tmp_path: Path) -> None:
    write, expected = REFUSED[file]
    text = write(tmp_path)
    with pytest.raises(InputError) as raised:
        read_lora(text, lora_targets(read_card(str(model_folder))))
    line = str(raised.value)
    print(line)
    assert raised.value.field == "lora"
    assert raised.value.exit_code == 2
    assert "\n" not in line
    assert expected in line


# ---- the layout of VideoCrafter's authors ----


@pytest.fixture(scope="module")
def lvdm_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, lvdm.UNetModel]:
    return lvdm_folder(tmp_path_factory.mktemp("lvdm"))


def modelscope(name: str) -> str:
    """ModelScope's names, where they differ from LVDM's."""
    name = name.replace("init_attn.0", "input_blocks.0.1")
    return f"{name.removesuffix('.0.op')}.op" if name.endswith(".0.op") else name


LVDM_NAMES: dict[str, Callable[[str], str]] = {
    "LVDM, kohya": lambda name: kohya_name(name, "lora_unet_"),
    "LVDM, model.diffusion_model": lambda name: dotted(name, "model.diffusion_model."),
    "LVDM, diffusion_model": lambda name: dotted(name, "diffusion_model."),
    "ModelScope": modelscope,
    "ModelScope, kohya": lambda name: kohya_name(modelscope(name), "lora_unet_"),
}


@pytest.mark.parametrize("layout", LVDM_NAMES)
def test_names_of_the_published_checkpoints_are_understood(
    layout: str,
    lvdm_model: tuple[Path, lvdm.UNetModel],
    tmp_path: Path,
    record_worst: Callable[[str, float], None],
) -> None:
    """Merged into the original network under its own names, and into ours: both predict the same."""
    folder, reference = lvdm_model
    own = lvdm.UNetModel(context=16, mult=(1, 2, 2), attention=(1, 2))
    own.load_state_dict(reference.state_dict())
    own.eval().requires_grad_(False)
    state: dict[str, Tensor] = {}
    for seed, (name, module) in enumerate(own.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            up, down, product = low_rank(module.weight, seed)
            module.weight += 0.5 * product
            key = LVDM_NAMES[layout](name)
            state |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
            state[f"{key}.alpha"] = torch.tensor(1.0)
    lora = read_lora(save(tmp_path, state), lora_targets(read_card(str(folder))))
    with open_loras([lora], "unet") as changes:
        ours = load_unet(folder / "unet", device="cpu", dtype=torch.float32, changes=changes)
    x, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 16)
    t, fps = torch.tensor([749.0]), torch.tensor([16.0])
    expected = own(x, t, text, fps)
    assert relative_error(expected, reference(x, t, text, fps)) > 1e-2
    error = relative_error(ours(x, t, FrameText.same(text), one_rank(3), fps=fps), expected)
    assert error <= CLOSE
    record_worst(f"LoRA file, {layout}", error)


def test_loras_of_stable_diffusion_2_fit_the_spatial_layers(model_folder: Path, tmp_path: Path) -> None:
    """Trained on a 2-D UNet of the same widths, with linear projections as in Stable Diffusion 2."""
    pictures = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=8,
        use_linear_projection=True,
    )
    model = trained(pictures, [*TARGETS["attention"], "proj_in", "conv1", "time_emb_proj"])
    targets = lora_targets(read_card(str(model_folder)))
    lora = read_lora(save(tmp_path, factors(model)), targets)
    assert len(lora.changes["unet"]) == len(factors(model)) / 2
    first = UNet2DConditionModel(
        **{**pictures.config, "use_linear_projection": False, "cross_attention_dim": 12}
    )
    text = save(tmp_path, factors(trained(first, TARGETS["attention"])))
    with pytest.raises(InputError, match="is for another model"):
        read_lora(text, targets)


# ---- weights and several files ----


@pytest.mark.parametrize(
    "layout",
    ["PEFT, DoRA", "PEFT, modules_to_save", "PEFT, bias of all layers", "LyCORIS, LoHa", "PEFT, lora_bias"],
)
def test_a_weight_scales_the_whole_change(layout: str, model_folder: Path, tmp_path: Path) -> None:
    text = LAYOUTS[layout](tmp_path).text
    none, half, full = (loaded(model_folder, f"{text}:{weight}")[0] for weight in (0, 0.5, 1))
    base = load_unet(model_folder / "unet", device="cpu", dtype=torch.float32).state_dict()
    for name, tensor in base.items():
        assert torch.equal(none[name], tensor)
        torch.testing.assert_close(half[name], (tensor + full[name]) / 2, rtol=0, atol=CLOSE)


def test_the_order_of_files_does_not_matter(model_folder: Path, tmp_path: Path) -> None:
    texts = []
    for index, layout in enumerate(("PEFT, DoRA", "kohya", "PEFT, modules_to_save")):
        (tmp_path / str(index)).mkdir()
        texts.append(LAYOUTS[layout](tmp_path / str(index)).text)
    targets = lora_targets(read_card(str(model_folder)))

    def merged(order: list[str]) -> dict[str, Tensor]:
        with open_loras([read_lora(text, targets) for text in order], "unet") as changes:
            return load_unet(
                model_folder / "unet", device="cpu", dtype=torch.float32, changes=changes
            ).state_dict()

    first, second = merged(texts), merged(texts[::-1])
    assert max((first[name] - second[name]).abs().max().item() for name in first) <= CLOSE


def test_no_two_modules_share_a_name(model_folder: Path, lvdm_model: tuple[Path, lvdm.UNetModel]) -> None:
    for folder in (model_folder, lvdm_model[0]):
        for target in lora_targets(read_card(str(folder))):
            modules = {parameter.rpartition(".")[0] for parameter in target.shapes}
            assert set(target.modules.values()) == modules
            for module in modules:
                assert target.modules[module] == module
                assert target.modules[module.replace(".", "_")] == module


def test_every_tensor_of_a_file_is_used(model_folder: Path, tmp_path: Path) -> None:
    for index, (layout, make) in enumerate(LAYOUTS.items()):
        (tmp_path / str(index)).mkdir()
        lora = read_lora(make(tmp_path / str(index)).text, lora_targets(read_card(str(model_folder))))
        used = {
            key
            for parameters in lora.changes.values()
            for changes in parameters.values()
            for change in changes
            for key in change.keys.values()
        }
        left = {key for key in lora.file.entries if key not in used and not key.endswith("alpha")}
        assert left == set(), layout
