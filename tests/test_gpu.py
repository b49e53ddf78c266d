"""What must hold on a GPU. Each test runs on a pretend GPU, and with `pytest -m gpu` on a real one if there is one."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.networks import our_unet, our_vae
from oracles.pretend.device import PretendCuda
from oracles.pretend.ranks import on_pretend_ranks
from oracles.rank_work import Case, call_unets
from oracles.reference import configure, relative_error, tiny_unet, tiny_vae
from safetensors.torch import load_file
from torch import Tensor

from vinfinity.bench.timing import time_in_turn
from vinfinity.media.decode import decode_block
from vinfinity.models.frame_text import FrameText
from vinfinity.models.offload import DeviceStore, HostStore
from vinfinity.models.unet3d.unet import DeepFeatures, UNet
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import LocalExchange
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.run import run

FRAMES = 21
SCOPES = Scopes(local=3, anchors=4, anchor_bias=2.0)


def real(gpus: int) -> Any:
    missing = torch.cuda.device_count() < gpus
    return pytest.param(
        "real", marks=[pytest.mark.gpu, pytest.mark.skipif(missing, reason=f"needs {gpus} CUDA devices")]
    )


@pytest.fixture(params=["pretend", real(1)])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the kind of GPU that the test runs on. Products are exact, not in TF32."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    with PretendCuda() if request.param == "pretend" else contextlib.nullcontext():
        yield request.param
    matmul.allow_tf32, convolution.allow_tf32 = before


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Inside the block, operations that make the host wait for a GPU raise."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def tiny(**changes: Any) -> tuple[UNet, Tensor, Tensor]:
    unet = our_unet(tiny_unet(**changes))
    x = torch.randn(2, unet.config.in_channels, FRAMES, 6, 5)
    return unet, x, torch.randn(2, 5, unet.config.cross_attention_dim)


def predict(unet: UNet, x: Tensor, text: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    context = temporal_context(LocalExchange(), FrameShards(FRAMES), 0, SCOPES, device=device)
    unet = unet.to(device, dtype)
    t = torch.full((1,), 500.0, device=device)
    with torch.inference_mode():
        return unet(x.to(device, dtype), t, FrameText.same(text.to(device, dtype)), context).float().cpu()


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_the_unet_equals_the_one_on_the_cpu(dtype: torch.dtype, close: float, gpu: str) -> None:
    unet, x, text = tiny()
    expected = predict(unet, x, text, "cpu", torch.float32)
    assert relative_error(predict(unet, x, text, "cuda", dtype), expected) <= close


@pytest.mark.parametrize(
    ("skips", "branches", "reuse", "head_width"),
    [("device", 1, False, 8), ("device", 2, True, 8), ("host", 1, False, 64), ("host", 2, True, 8)],
)
def test_a_call_never_waits_for_the_device(
    skips: str, branches: int, reuse: bool, head_width: int, gpu: str
) -> None:
    """With the scopes of both phases of the default schedule."""
    unet, x, text = tiny(attention_head_dim=head_width, block_out_channels=(head_width, 2 * head_width))
    device, half = torch.device("cuda", 0), torch.float16
    unet.to(device, half)
    x, text = x[:branches].to(device, half), text[:branches].to(device, half)
    store = HostStore(device) if skips == "host" else DeviceStore()
    deep = DeepFeatures(1) if reuse else None
    t = torch.full((1,), 500.0, device=device)
    for phase in (Scopes(3, 4, -math.inf, 10.0), Scopes(3, 4, 10.0, 0.0)):
        context = temporal_context(
            LocalExchange(), FrameShards(FRAMES), 0, phase, chunk_bytes=2**15, device=device
        )
        # the first call may set things up
        for guard in (contextlib.nullcontext(), no_waiting()):
            with torch.inference_mode(), guard:
                for renew in (True, False) if reuse else (True,):
                    if deep is not None:
                        deep.renew = renew
                    unet(x, t, FrameText.same(text), context, store=store, deep=deep)


@pytest.mark.parametrize("tile", [None, 4])
def test_decoding_waits_only_for_the_requested_block(tile: int | None, gpu: str) -> None:
    decoder, latents = our_vae(tiny_vae()), torch.randn(4, 3, 6, 5)
    expected = decode_block(decoder, latents, size=(37, 45), tile=tile).wait()
    decoder = decoder.to("cuda")
    decode_block(decoder, latents, size=(37, 45), tile=tile).wait()  # the first call may set things up
    with no_waiting():
        block = decode_block(decoder, latents, size=(37, 45), tile=tile)
    pictures = block.wait()
    assert pictures.is_pinned()
    assert (pictures.int() - expected.int()).abs().max() <= 1


def test_a_run_starts_from_the_cpus_noise_and_ends_near_its_latents(
    model_folder: Path, tmp_path: Path, gpu: str
) -> None:
    latents = {}
    for device in ("cpu", "cuda"):
        file = tmp_path / f"{device}.safetensors"
        resolved = configure(
            model_folder,
            frames=20,
            steps=4,
            device=device,
            dtype="fp32",
            out=str(tmp_path / f"{device}.mp4"),
            save_latents=str(file),
        )
        run(resolved.config)
        latents[device] = load_file(file)["latents"]
    assert relative_error(latents["cuda"], latents["cpu"]) <= 1e-2


def test_a_measured_call_includes_the_work_of_the_device(gpu: str) -> None:
    x, ends = torch.ones(1000, device="cuda"), []
    calls = {"a": lambda: ends.append((x.mul_(2), torch.cuda.current_stream().record_event())[1])}

    def barrier() -> None:
        # pretend events say that they have happened only when asked again, or after a wait
        assert all(event.query() for event in ends)

    time_in_turn(calls, rounds=2, barrier=barrier)
    assert len(ends) == 3


def exact(cases: list[Case], ranks: Ranks) -> list[Tensor]:
    """`call_unets` without TF32, which a started process would use."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return call_unets(cases, ranks)


@pytest.mark.parametrize("gpus", ["pretend", real(2)])
def test_two_gpus_equal_one(gpus: str) -> None:
    unet, x, text = tiny()
    cases = [Case(unet.config, unet.state_dict(), x, text, SCOPES)]
    if gpus == "real":
        (expected,) = launch(exact, cases, gpus=1, device="cuda", timeout=60.0)
        (ours,) = launch(exact, cases, gpus=2, device="cuda", timeout=60.0)
    else:
        expected, ours = (
            on_pretend_ranks(lambda own: exact(cases, own), ranks=ranks)[0].result[0] for ranks in (1, 2)
        )
    assert relative_error(ours, expected) <= 1e-4
