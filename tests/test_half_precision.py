"""Half precision: what stays in fp32, how close frames are to fp32, and how NaN or infinite values stop a run."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.networks import load_unet
from oracles.pretend.device import PretendCuda
from oracles.reference import configure, copy_model, decoded, on_ranks
from oracles.wan import save_wan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vinfinity.errors import VinfinityError
from vinfinity.job import prepare
from vinfinity.job_report import concerns
from vinfinity.models.finite import first_not_finite
from vinfinity.models.frame_text import FrameText
from vinfinity.models.unet3d.unet import UNet
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import FrameExchange, LocalExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.run import run
from vinfinity.weights.card import EMBEDDED

UNET = Path("unet", "diffusion_pytorch_model.safetensors")
NORM = "up_blocks.0.resnets.0.norm2"
Record = Callable[[str, float], None]


def latents_of(model: Path, folder: Path, **flags: Any) -> Tensor:
    """Return the final latents of a short run on the CPU."""
    path = folder / "latents.safetensors"
    settings = {"frames": 3, "size": "16x16", "save_latents": str(path), "overwrite": True, "device": "cpu"}
    resolved = configure(model, out=str(folder / "a.mp4"), **{**settings, **flags})
    assert run(resolved.config) is not None
    return load_file(path)["latents"]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit frames, in dB."""
    error = np.square(one.astype(float) - other.astype(float)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "minimum"), [("bf16", 35.0), ("fp16", 50.0)])
def test_frames_in_half_precision_are_close_to_those_in_fp32(
    dtype: str, minimum: float, tmp_path: Path, record_worst: Record
) -> None:
    """A clip of the trained length by the embedded model, decoded: PSNR over all frames."""
    model = EMBEDDED / "mini"
    prompt = "a red ball bouncing over green grass"
    flags = {"frames": 16, "size": "96x64", "steps": 10, "guidance": 1.4, "prompt": prompt}
    frames = [
        decoded(model, latents_of(model, tmp_path, dtype=kind, **flags), size=(96, 64), block=8)
        for kind in ("fp32", dtype)
    ]
    value = psnr(*frames)
    record_worst(f"PSNR of {dtype} against fp32, dB", value)
    assert value >= minimum


@pytest.mark.parametrize("scopes", [None, Scopes(8, 16, 0.0, 10.0), Scopes(2, 3, -math.inf, 0.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_number_of_ranks_changes_no_bit(dtype: torch.dtype, scopes: Scopes | None) -> None:
    """The UNet of `mini` for both guidance branches. On 5 ranks of 37 frames, each holds a whole group of frames; 13
    frames are one group, of which ranks hold parts. Large chunks hold several groups.
    """
    unet = load_unet(EMBEDDED / "mini" / "unet", device="cpu", dtype=dtype)
    text, t = torch.randn(2, 16, 96).to(dtype), torch.tensor([500.0])
    for frames, chunk_bytes in ((13, 2**16), (37, 2**16), (37, 2**20)):
        x = torch.randn(1, 4, frames, 4, 6).to(dtype).expand(2, -1, -1, -1, -1)

        def call(
            shards: FrameShards,
            rank: int,
            exchange: FrameExchange,
            x: Tensor = x,
            chunk_bytes: int = chunk_bytes,
        ) -> Tensor:
            held = shards.held(rank)
            context = temporal_context(exchange, shards, rank, scopes, chunk_bytes=chunk_bytes)
            return unet(x[:, :, held.start : held.stop], t, FrameText.same(text), context)

        one = FrameShards.of(frames, 1, grouped=True)
        with torch.inference_mode():
            alone = call(one, 0, LocalExchange())
        for ranks in (2, 3, 5):
            shards = FrameShards.of(frames, ranks, grouped=True)
            assert torch.equal(torch.cat(on_ranks(shards, partial(call, shards)), dim=2), alone), ranks


@pytest.mark.slow
@pytest.mark.parametrize("frames", [37, 96])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_runs_on_several_ranks_give_the_same_latents(dtype: str, frames: int, tmp_path: Path) -> None:
    flags = {
        "frames": frames,
        "size": "96x64",
        "steps": 2,
        "guidance": 1.4,
        "prompt": "a red ball",
        "dtype": dtype,
    }
    alone = latents_of(EMBEDDED / "mini", tmp_path, **flags)
    for ranks in (2, 3, 5):
        assert torch.equal(latents_of(EMBEDDED / "mini", tmp_path, gpus=ranks, **flags), alone), ranks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_time_embedding_and_group_norms_stay_in_fp32(dtype: torch.dtype, model_folder: Path) -> None:
    unet = load_unet(model_folder / "unet", device="cpu", dtype=dtype)
    kept = [f"{name}." for name, layer in unet.named_modules() if isinstance(layer, nn.GroupNorm)]
    assert kept
    for name, parameter in unet.named_parameters():
        stays = name.startswith(("time_embedding.", *kept))
        assert parameter.dtype == (torch.float32 if stays else dtype), name


def test_the_sampler_runs_in_fp32(model_folder: Path, tmp_path: Path) -> None:
    assert latents_of(model_folder, tmp_path, dtype="bf16").dtype == torch.float32


# ---- NaN and infinite values ----


def set_weight(model: Path, name: str, value: float) -> None:
    """Set the first entry of a weight of the UNet."""
    tensors = load_file(model / UNET)
    tensors[name][0] = value
    save_file(tensors, model / UNET)


def error_line(model: Path, folder: Path, **flags: Any) -> str:
    """Return the message of a run that stops with exit code 5: one line."""
    with pytest.raises(VinfinityError) as raised:
        latents_of(model, folder, **flags)
    assert raised.value.exit_code == 5
    line = str(raised.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_stops_and_names_the_step_and_the_layer(value: float, own_model: Path, tmp_path: Path) -> None:
    set_weight(own_model, f"{NORM}.bias", value)
    line = error_line(own_model, tmp_path, dtype="fp32", sampler="ddim", steps=2)
    assert line.startswith(
        "step 1 (timestep 501): the network's layer up_blocks.0.resnets.0.norm2 produced NaN or infinite values"
    )
    assert not (tmp_path / "a.mp4").exists()
    assert not (tmp_path / "latents.safetensors").exists()


def test_a_model_that_overflows_in_fp16_runs_in_bf16(own_model: Path, tmp_path: Path) -> None:
    set_weight(own_model, f"{NORM}.bias", 1e5)
    assert "float16; try dtype=bf16" in error_line(own_model, tmp_path, dtype="fp16")
    assert latents_of(own_model, tmp_path, dtype="bf16").isfinite().all()


def test_a_later_step_is_named(own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input is infinite from the second step on; bad weights would stop the run in the first."""
    forward, calls = UNet.forward, []

    def overflowing(self: UNet, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(t)
        return forward(self, x * (math.inf if t < 400 else 1.0), t, *args, **kwargs)

    monkeypatch.setattr(UNet, "forward", overflowing)
    line = error_line(own_model, tmp_path, dtype="fp32", sampler="ddim", steps=3)
    assert line.startswith("step 2 (timestep 334): the network's layer conv_in ")


def test_nan_text_states_stop_the_run(own_model: Path, tmp_path: Path) -> None:
    path = own_model / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("final_layer_norm.bias"))
    tensors[name][0] = math.nan
    save_file(tensors, path)
    assert error_line(own_model, tmp_path, dtype="fp32").startswith("text encoder: its output produced")


def test_nan_frames_stop_the_run(own_model: Path, tmp_path: Path) -> None:
    path = own_model / "vae" / UNET.name
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"][0] = math.nan
    save_file(tensors, path)
    assert error_line(own_model, tmp_path, dtype="fp32").startswith(
        "decoding: finite latents decoded to NaN or infinite frames"
    )


@pytest.mark.slow
def test_all_ranks_stop_with_one_line(own_model: Path, tmp_path: Path) -> None:
    set_weight(own_model, "conv_out.bias", math.nan)
    line = error_line(own_model, tmp_path, dtype="fp32", frames=4, gpus=2)
    assert "the network's layer conv_out produced NaN or infinite values" in line


def test_inner_layers_are_named_first(model_folder: Path, tmp_path: Path) -> None:
    model = copy_model(model_folder, tmp_path / "model")
    unet = load_unet(model / "unet", device="cpu", dtype=torch.float32)
    attention = unet.mid_block.attentions[0]
    attention.get_parameter("proj_out.bias").fill_(math.nan)
    with first_not_finite(attention) as names:
        attention(torch.randn(1, 2, 2, 2, 32), [(range(2), torch.randn(1, 3, 16))])
    assert names == ["proj_out"]
    convolutions = unet.mid_block.temp_convs[0]
    convolutions.get_parameter("conv2.3.bias").fill_(math.nan)
    with first_not_finite(convolutions) as names:
        convolutions(torch.randn(1, 3, 2, 2, 32), temporal_context(LocalExchange(), FrameShards(3), 0, None))
    assert names[0] == "conv2"
    assert not any(module._forward_hooks for module in attention.modules())


@pytest.mark.parametrize(
    ("dtype", "check"), [("bf16", "_is_mkldnn_bf16_supported"), ("fp16", "_is_mkldnn_fp16_supported")]
)
def test_types_that_the_processor_has_no_instructions_for_are_warned_of(
    dtype: str, check: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(kind: str, *, supported: bool) -> bool:
        monkeypatch.setattr(torch.ops.mkldnn, check, lambda: supported)
        config = configure(model_folder, out=str(tmp_path / "a.mp4"), device="cpu", dtype=kind).config
        return any("slower than fp32 on this CPU" in line for line in concerns(prepare(config)))

    assert warned(dtype, supported=False)
    assert not warned(dtype, supported=True)
    assert not warned("auto", supported=False)


def test_bf16_on_gpus_without_instructions_for_it_is_warned_of(model_folder: Path, tmp_path: Path) -> None:
    wan = save_wan(tmp_path / "wan")

    def warnings(model: Path, dtype: str, *, capability: tuple[int, int]) -> list[str]:
        with PretendCuda(capability=capability):
            config = configure(model, out=str(tmp_path / "a.mp4"), device="cuda", dtype=dtype).config
            return [line for line in concerns(prepare(config)) if line.startswith("dtype: ")]

    [warning] = warnings(model_folder, "bf16", capability=(7, 5))
    assert warning.startswith("dtype: this GPU has no native bf16")
    assert warning.endswith("; use fp16")
    # the family's default, and its text encoder overflows in fp16
    [warning] = warnings(wan, "auto", capability=(7, 0))
    assert warning.endswith("; use fp32")
    assert warnings(model_folder, "auto", capability=(7, 5)) == []
    assert warnings(wan, "auto", capability=(8, 0)) == []
