"""Another decoder for the same latents: AutoencoderTiny against diffusers, and what is refused before weights load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny as TheirTiny
from oracles.reference import fill, relative_error, tiny_vae
from safetensors.torch import load_file, save_file
from torch import nn

from vinfinity.errors import InputError, WeightsError
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.unet3d.configs import TinyConfig
from vinfinity.models.unet3d.taesd import AutoencoderTiny
from vinfinity.models.unet3d.vae import AutoencoderKL
from vinfinity.weights.inspect import describe_model
from vinfinity.weights.load import check_decoder, load_decoder

CLOSE = 1e-5
WEIGHTS = "diffusion_pytorch_model.safetensors"
SETTINGS: dict[str, dict[str, Any]] = {
    "TAESD": {},
    "2 levels, other widths": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (16, 16),
        "num_encoder_blocks": (1, 2),
        "num_decoder_blocks": (2, 1),
    },
    "scaled and shifted, 16 channels": {
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
    "threefold, another activation": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "upsampling_scaling_factor": 3,
        "act_fn": "silu",
    },
    "1 level": {
        "encoder_block_out_channels": (8,),
        "decoder_block_out_channels": (8,),
        "num_encoder_blocks": (1,),
        "num_decoder_blocks": (1,),
    },
}


def tiny(name: str = "TAESD") -> TheirTiny:
    return fill(TheirTiny(**SETTINGS[name]))


@pytest.fixture
def taesd(tmp_path: Path) -> Path:
    """Return a folder like TAESD's, written by diffusers, with random weights."""
    tiny().save_pretrained(tmp_path / "taesd")
    return tmp_path / "taesd"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(folder: Path, *, channels: int = 4, pixels: int = 8) -> str:
    with pytest.raises(InputError) as raised:
        check_decoder(folder, LatentGeometry(channels=channels, downscale=pixels))
    line = str(raised.value)
    assert line.startswith("decoder: ")
    assert "\n" not in line
    return line


# ---- parity ----


@pytest.mark.parametrize("size", [(4, 5), (9, 13), (1, 1)], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_decode_matches_diffusers(
    name: str, size: tuple[int, int], tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    reference = tiny(name)
    reference.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path, device="cpu", dtype=torch.float32)
    assert isinstance(ours, AutoencoderTiny)
    # some are beyond 3, where the decoder limits them
    latents = 2 * torch.randn(2, reference.config.latent_channels, *size)
    raw = latents / reference.config.scaling_factor + reference.config.shift_factor
    expected = reference.decode(raw).sample
    assert expected.shape[2] == ours.config.downscale * size[0]
    error = relative_error(ours.decode(latents), expected)
    assert error <= CLOSE
    record_worst(f"AutoencoderTiny, {name}", error)


def test_the_models_own_autoencoder_loads_as_a_decoder_without_its_encoder(tmp_path: Path) -> None:
    reference = tiny_vae()
    reference.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path, device="cpu", dtype=torch.float32)
    assert isinstance(ours, AutoencoderKL)
    assert {name.partition(".")[0] for name in ours.state_dict()} == {"decoder", "post_quant_conv"}
    latents = torch.randn(2, 4, 3, 5)
    expected = reference.decode(latents / reference.config.scaling_factor).sample
    assert relative_error(ours.decode(latents), expected) <= CLOSE


# ---- files ----


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a loaded decoder."""
    loaded = load_decoder(folder, device="cpu", dtype=torch.float32)
    assert isinstance(loaded, nn.Module)
    return loaded.state_dict()


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_files_without_an_encoder_are_accepted(kind: str, tmp_path: Path) -> None:
    reference = tiny() if kind == "tiny" else tiny_vae()
    reference.save_pretrained(tmp_path)
    whole = state_of(tmp_path)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(("encoder.", "quant_conv."))]:
            del tensors[name]

    change(tmp_path, drop)
    half = state_of(tmp_path)
    assert whole.keys() == half.keys()
    assert all(torch.equal(half[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("decoder.layers.0.weight"), "missing decoder.layers.0.weight"),
        (lambda t: t.pop("encoder.layers.0.weight"), "missing encoder.layers.0.weight"),
        (lambda t: t.update({"decoder.layers.99.weight": torch.zeros(1)}), "unexpected decoder.layers.99.w"),
        (lambda t: t.update({"mid.weight": torch.zeros(1)}), "unexpected mid.weight"),
        (lambda t: t.update({"decoder.layers.0.bias": torch.zeros(3)}), "decoder.layers.0.bias is 3, not 64"),
        (lambda t: t.update({"encoder.layers.0.bias": torch.zeros(3)}), "encoder.layers.0.bias is 3, not 64"),
    ],
    ids=["missing", "missing in the encoder", "unexpected", "of no half", "misshapen", "misshapen encoder"],
)
def test_every_tensor_must_belong_to_the_decoder(
    edit: Callable[[dict[str, torch.Tensor]], None], message: str, taesd: Path
) -> None:
    change(taesd, edit)
    assert message in refusal(taesd)
    with pytest.raises(WeightsError, match=message.split()[-1]):
        load_decoder(taesd, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "AutoencoderDC"},
            "has the class AutoencoderDC; use AutoencoderKL or AutoencoderTi",
        ),
        ({"act_fn": "sine"}, "act_fn"),
        ({"upsample_fn": "bilinear"}, "upsample_fn"),
        ({"num_decoder_blocks": [3, 3]}, "num_decoder_blocks"),
        ({"num_decoder_blocks": [3, 3, 3, 2]}, "missing decoder.layers.19"),
        ({"temporal": True}, "temporal"),
    ],
    ids=str,
)
def test_unsupported_architectures_are_refused(changes: dict[str, Any], message: str, taesd: Path) -> None:
    config = taesd / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    assert message in refusal(taesd)


def test_a_decoder_for_other_latents_is_refused(taesd: Path) -> None:
    check_decoder(taesd, LatentGeometry(channels=4, downscale=8))
    message = "decodes latents of 4 channels and 8 pixels per position, but the model's have"
    assert f"{message} 16 channels and 8 pixels per position" in refusal(taesd, channels=16)
    assert f"{message} 4 channels and 4 pixels per position" in refusal(taesd, pixels=4)


def test_damaged_and_missing_files_are_named(taesd: Path) -> None:
    (taesd / WEIGHTS).write_bytes((taesd / WEIGHTS).read_bytes()[:-1])
    assert "is truncated" in refusal(taesd)
    (taesd / WEIGHTS).unlink()
    assert "has no weights" in refusal(taesd)
    (taesd / "config.json").unlink()
    assert "config.json is missing" in refusal(taesd)


def test_show_describes_a_decoder_and_its_problems(taesd: Path) -> None:
    rows, problems = describe_model(taesd)
    assert problems == []
    shown = dict(rows)
    assert shown["decoder"].startswith("1.2 M parameters, F32, ")
    assert "AutoencoderTiny" in shown["decoder"]
    assert shown["for latents of"] == "4 channels, 8 pixels per position"
    # the latents of the default model are others
    assert f"--model MODEL --decoder {taesd}" in shown["use"]
    change(taesd, lambda tensors: tensors.pop("decoder.layers.0.weight"))
    _, problems = describe_model(taesd)
    assert len(problems) == 1
    assert "missing decoder.layers.0.weight" in problems[0]


def test_the_encoder_takes_no_memory(taesd: Path) -> None:
    loaded = load_decoder(taesd, device="cpu", dtype=torch.float32)
    assert isinstance(loaded, nn.Module)
    assert {name.partition(".")[0] for name in loaded.state_dict()} == {"decoder"}
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())


def test_defaults_are_those_of_taesd() -> None:
    reference = dict(TheirTiny().config)
    assert TinyConfig.from_dict(reference) == TinyConfig()
