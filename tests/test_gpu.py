"""Tests that need a GPU: run by `pytest -m gpu`, skipped on machines without one."""

from pathlib import Path

import pytest
import torch
from oracles.networks import our_vae
from oracles.rank_work import Case, call_unets
from oracles.reference import configure, relative_error, tiny_unet, tiny_vae
from safetensors.torch import load_file

from vinfinity.media.decode import decode_block
from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import LocalExchange
from vinfinity.parallel.launch import launch
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.run import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FRAMES = 21
SCOPES = Scopes(local=3, anchors=4, anchor_bias=2.0)


def tiny() -> tuple[UNet, torch.Tensor, torch.Tensor]:
    reference = tiny_unet()
    config = UNetConfig.from_dict(dict(reference.config))
    unet = UNet(config)
    unet.load_state_dict(reference.state_dict())
    x = torch.randn(2, config.in_channels, FRAMES, 6, 5)
    return unet.eval(), x, torch.randn(2, 5, config.cross_attention_dim)


def predict(unet: UNet, x: torch.Tensor, text: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    context = temporal_context(LocalExchange(), FrameShards(FRAMES), 0, SCOPES, device=device)
    unet = unet.to(device, dtype)
    t = torch.full((1,), 500.0, device=device)
    with torch.inference_mode():
        return unet(x.to(device, dtype), t, text.to(device, dtype), context).float().cpu()


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_the_unet_on_a_gpu_equals_the_one_on_the_cpu(dtype: torch.dtype, close: float) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    unet, x, text = tiny()
    expected = predict(unet, x, text, "cpu", torch.float32)
    assert relative_error(predict(unet, x, text, "cuda", dtype), expected) <= close


def test_a_call_on_a_gpu_never_waits_for_the_device() -> None:
    unet, x, text = tiny()
    predict(unet, x, text, "cuda", torch.float16)  # the first call may set things up
    context = temporal_context(LocalExchange(), FrameShards(FRAMES), 0, SCOPES, device="cuda")
    x, text, t = x.to("cuda").half(), text.to("cuda").half(), torch.full((1,), 500.0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            unet(x, t, text, context)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tile", [None, 4])
def test_decoding_on_a_gpu_waits_only_for_the_requested_block(tile: int | None) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    decoder, latents = our_vae(tiny_vae()), torch.randn(4, 3, 6, 5)
    expected = decode_block(decoder, latents, size=(37, 45), tile=tile).wait()
    decoder = decoder.to("cuda")
    decode_block(decoder, latents, size=(37, 45), tile=tile).wait()  # the first call may set things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        block = decode_block(decoder, latents, size=(37, 45), tile=tile)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    pictures = block.wait()
    assert pictures.is_pinned()
    assert (pictures.int() - expected.int()).abs().max() <= 1


def test_a_run_on_a_gpu_starts_from_the_cpus_noise_and_ends_near_its_latents(
    model_folder: Path, tmp_path: Path
) -> None:
    latents = {}
    for device in ("cpu", "cuda"):
        file = tmp_path / f"{device}.safetensors"
        resolved = configure(
            model_folder,
            frames=20,
            device=device,
            dtype="fp32",
            out=str(tmp_path / f"{device}.mp4"),
            save_latents=str(file),
        )
        run(resolved.config)
        latents[device] = load_file(file)["latents"]
    assert relative_error(latents["cuda"], latents["cpu"]) <= 1e-2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_equal_one() -> None:
    unet, x, text = tiny()
    cases = [Case(unet.config, unet.state_dict(), x, text, SCOPES)]
    (expected,) = launch(call_unets, cases, gpus=1, device="cuda", timeout=60.0)
    (ours,) = launch(call_unets, cases, gpus=2, device="cuda", timeout=60.0)
    assert relative_error(ours, expected) <= 1e-3
