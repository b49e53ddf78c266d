"""Which products of fp32 tensors are exact on GPUs, and which use TF32."""

import pytest
import torch
from oracles.networks import our_vae
from oracles.reference import configure, tiny_vae
from torch import nn

from vinfinity.denoiser import make_denoiser
from vinfinity.inputs import shared_text
from vinfinity.job import prepare
from vinfinity.media.decode import decode_block
from vinfinity.networks import Networks, load_denoiser
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.teams import team_of
from vinfinity.planning.fit import find_fit
from vinfinity.system.precision import fp32_products

CPU = torch.device("cpu")


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def flags_in(network: nn.Module) -> list[tuple[bool, bool]]:
    """Return the flags at each call of a network from now on."""
    seen: list[tuple[bool, bool]] = []
    network.register_forward_pre_hook(lambda *_: seen.append(flags()))
    return seen


def test_the_flags_are_those_of_before_when_the_block_ends() -> None:
    before = flags()
    for tf32 in (True, False):
        with fp32_products(tf32=tf32):
            assert flags() == (tf32, tf32)
        assert flags() == before
    with pytest.raises(ValueError, match="inside"), fp32_products(tf32=not before[0]):
        raise ValueError("inside")
    assert flags() == before


def test_settings_by_torchs_newer_api_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has one API only")
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with fp32_products(tf32=False):
            assert matmul.fp32_precision == "tf32"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_the_denoiser_is_exact_in_fp32_and_decoding_uses_tf32() -> None:
    before = flags()
    job = prepare(configure("mini", prompt="a red ball", frames=2, size="32x32", device="cpu").config)
    network = load_denoiser(job, device=CPU, dtype=torch.float32)
    team, ranks = team_of(0, 1, frames=2, split=False), Ranks(device=CPU)
    text = shared_text(job, Networks(CPU), ranks)
    denoiser = make_denoiser(job, network, text, team, team.exchange(), find_fit(job, ranks).fastest)
    seen = flags_in(network)
    with torch.inference_mode():
        denoiser.call(torch.zeros(1, *job.latent[:1], 2, *job.latent[1:]), 500.0)
    assert set(seen) == {(False, False)}
    decoder = our_vae(tiny_vae())
    seen = flags_in(decoder.decoder)
    decode_block(decoder, torch.zeros(4, 1, 4, 4), size=(32, 32), tile=None).wait()
    assert set(seen) == {(True, True)}
    assert flags() == before
