"""Tests that need a GPU: run by `pytest -m gpu`, skipped on machines without one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from oracles.networks import our_vae
from oracles.rank_work import Case, call_unets
from oracles.reference import configure, relative_error, tiny_unet, tiny_vae
from safetensors.torch import load_file

from vinfinity.media.decode import decode_block
from vinfinity.models.offload import store_for
from vinfinity.models.unet3d.unet import DeepFeatures, UNet, UNetConfig
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import LocalExchange
from vinfinity.parallel.launch import launch
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.run import run
from vinfinity.system.precision import fp32_products

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FRAMES = 21
SCOPES = {
    "anchors and near frames": Scopes(local=3, anchors=4, anchor_bias=10.0),
    "near frames alone": Scopes(local=3, anchors=4, anchor_bias=-torch.inf),
    "anchors alone": Scopes(local=3, anchors=4, local_bias=-torch.inf),
}
# heads of 8 channels are those of mini, of 64 those of the published models
WIDTHS = {8: {}, 64: {"block_out_channels": (64, 128), "attention_head_dim": 64}}
TIMEOUT = 120.0


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """fp32 is fp32, whichever test ran before."""
    with fp32_products(tf32=False):
        yield


def tiny(**settings: object) -> tuple[UNet, torch.Tensor, torch.Tensor]:
    reference = tiny_unet(**settings)
    config = UNetConfig.from_dict(dict(reference.config))
    unet = UNet(config)
    unet.load_state_dict(reference.state_dict())
    x = torch.randn(2, config.in_channels, FRAMES, 6, 5)
    return unet.eval(), x, torch.randn(2, 5, config.cross_attention_dim)


def predict(
    unet: UNet, x: torch.Tensor, text: torch.Tensor, device: str, dtype: torch.dtype, scopes: Scopes
) -> torch.Tensor:
    context = temporal_context(LocalExchange(), FrameShards(FRAMES), 0, scopes, device=device)
    unet = unet.to(device, dtype)
    t = torch.full((1,), 500.0, device=device)
    with torch.inference_mode():
        return unet(x.to(device, dtype), t, text.to(device, dtype), context).float().cpu()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scopes", SCOPES)
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_the_unet_on_a_gpu_equals_the_one_on_the_cpu(
    dtype: torch.dtype, close: float, scopes: str, width: int
) -> None:
    unet, x, text = tiny(**WIDTHS[width])
    expected = predict(unet, x, text, "cpu", torch.float32, SCOPES[scopes])
    ours = predict(unet, x, text, "cuda", dtype, SCOPES[scopes])
    assert relative_error(ours, expected) <= close


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scopes", SCOPES)
@pytest.mark.parametrize("skips", ["device", "host"])
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("reuse", [False, True])
def test_a_call_on_a_gpu_never_waits_for_the_device(
    reuse: bool, branches: int, skips: str, scopes: str, width: int
) -> None:
    unet, x, text = tiny(**WIDTHS[width])
    unet = unet.to("cuda").half()
    x, text = x[:branches].to("cuda").half(), text[:branches].to("cuda").half()
    t = torch.full((1,), 500.0, device="cuda")
    context = temporal_context(
        LocalExchange(), FrameShards(FRAMES), 0, SCOPES[scopes], chunk_bytes=2**14, device="cuda"
    )
    store = store_for(skips, torch.device("cuda"))  # type: ignore[arg-type]
    deep = DeepFeatures(1) if reuse else None
    calls = [True, False] if reuse else [True]

    def call() -> None:
        for renew in calls:
            if deep is not None:
                deep.renew = renew
            unet(x, t, text, context, store=store, deep=deep)

    with torch.inference_mode():
        # the first call may set things up
        call()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tile", [None, 4])
def test_decoding_on_a_gpu_waits_only_for_the_requested_block(tile: int | None) -> None:
    decoder, latents = our_vae(tiny_vae()), torch.randn(4, 3, 6, 5)
    expected = decode_block(decoder, latents, size=(37, 45), tile=tile).wait()
    decoder = decoder.to("cuda")
    # the first call may set things up
    decode_block(decoder, latents, size=(37, 45), tile=tile).wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        block = decode_block(decoder, latents, size=(37, 45), tile=tile)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    pictures = block.wait()
    assert pictures.is_pinned()
    # decoding uses TF32
    assert (pictures.int() - expected.int()).abs().max() <= 2


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
@pytest.mark.parametrize("scopes", SCOPES)
def test_two_gpus_equal_one(scopes: str) -> None:
    unet, x, text = tiny()
    cases = [Case(unet.config, unet.state_dict(), x, text, SCOPES[scopes])]
    (expected,) = launch(call_unets, cases, gpus=1, device="cuda", timeout=TIMEOUT)
    (ours,) = launch(call_unets, cases, gpus=2, device="cuda", timeout=TIMEOUT)
    assert relative_error(ours, expected) <= 1e-4
