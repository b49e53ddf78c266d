"""Whole runs of a tiny Wan with split guidance, LoRAs, compiled layers, and in batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.reference import relative_error
from oracles.runs import config_of, exit_code, latents, latents_on
from oracles.video import read_video
from oracles.wan import save_wan
from safetensors.torch import save_file

from vinfinity.run import run

CLOSE = 1e-5
# 25 latent frames, more than the 21 of the training clips
SETTINGS: dict[str, Any] = {"frames": 97, "size": "32x16", "steps": 4, "guidance": 3.0, "sampler": "unipc"}
SHORT: dict[str, Any] = {**SETTINGS, "frames": 9}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="module")
def alone(wan: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Return the latents of one rank, (1, c, f, h, w)."""
    return latents_on(wan, tmp_path_factory.mktemp("alone"), ranks=1, **SETTINGS)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_that_split_guidance_give_one_ranks_latents(
    ranks: int, wan: Path, alone: torch.Tensor, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    """Two branches at once are computed with other shapes than one, so the last bits may differ from theirs."""
    split = "parallel.split_guidance=true"
    several = latents_on(wan, tmp_path, split, ranks=ranks, **SETTINGS)
    error = relative_error(several, alone)
    record_worst(f"wan, split guidance on {ranks} ranks", error)
    assert error <= CLOSE
    one_branch = latents_on(wan, tmp_path, "compute.branches=1", ranks=1, **SETTINGS)
    assert torch.equal(several, one_branch)


def test_a_lora_gives_the_same_bits_on_one_rank_and_on_two(
    wan: Path, alone: torch.Tensor, tmp_path: Path
) -> None:
    factors = {}
    for module in ("blocks.0.attn1.to_q", "blocks.1.attn2.to_v", "blocks.1.attn1.to_out.0"):
        factors[f"transformer.{module}.lora_A.weight"] = torch.randn(3, 24)
        factors[f"transformer.{module}.lora_B.weight"] = torch.randn(24, 3)
    save_file(factors, tmp_path / "lora.safetensors")
    lora = [f"{tmp_path}/lora.safetensors:0.5"]
    one, two = (latents_on(wan, tmp_path, ranks=ranks, lora=lora, **SETTINGS) for ranks in (1, 2))
    assert torch.equal(one, two)
    assert relative_error(one, alone) > 1e-3


@pytest.mark.slow
def test_compiled_layers_give_the_same_video(wan: Path, tmp_path: Path) -> None:
    plain = latents_on(wan, tmp_path, ranks=1, **SHORT)
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    compiled = latents_on(wan, tmp_path, "compile=true", ranks=1, **SHORT)
    # both norms and the feed-forward layer
    assert counted["unique_graphs"] - before >= 3
    assert relative_error(compiled, plain) <= CLOSE


def test_the_videos_of_a_batch_have_the_bits_of_single_runs(wan: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,frames\na red ball,9\na blue boat,13\n")
    command = ["batch", str(rows), "--model", str(wan), "--device", "cpu", "--size", "32x16", "--steps", "2"]
    command += ["--gpus", "2", "--folder", str(tmp_path / "made"), "--out", "{index}.mp4", "dtype=fp32"]
    assert exit_code(*command) == 0
    for number, (prompt, frames) in enumerate((("a red ball", 9), ("a blue boat", 13)), start=1):
        flags = {"prompt": prompt, "frames": frames, "size": "32x16", "steps": 2}
        run(config_of(wan, tmp_path / f"{number}.mp4", **flags))
        assert torch.equal(latents(tmp_path / "made" / f"{number}.run"), latents(tmp_path / f"{number}.run"))
        assert len(read_video(tmp_path / "made" / f"{number}.mp4")) == frames
