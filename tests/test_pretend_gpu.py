"""Whole runs on a pretend GPU: the latents are the CPU's, and nothing is found that would go wrong on a real one."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.pretend.device import GIB, Findings, PretendCuda
from oracles.reference import configure, relative_error, save_model, tiny_pipeline
from oracles.runs import exit_code, latents, stop_after_step
from safetensors.torch import load_file, save_file
from torch import Tensor

from vinfinity import Pipeline, load_config, networks
from vinfinity.config import RunConfig
from vinfinity.denoise import execution
from vinfinity.errors import InputError, NotFiniteError, OutOfMemoryError
from vinfinity.models import offload
from vinfinity.parallel.devices import forget_peak_memory, select_device
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.planning.plan import make_plan
from vinfinity.run import run
from vinfinity.system.out_of_memory import GPU_REMEDY
from vinfinity.system.transfer import _warn_of_pageable_memory, to_host

# Both compute in fp32 on a CPU, but a GPU's linear layers do not go through oneDNN (`uses_onednn`), so that sums are
# rounded in another order. The largest difference seen is 3e-6.
CLOSE = 1e-5
LOOP = "denoise/loop.py:denoise"
DECODING = "media/decode.py:pictures"
CHECKPOINT = "runs/checkpoints.py:after"
HOST = ("compute.skips=host", "compute.chunk=24")

# frames, steps and other settings of runs
RUNS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "both branches at once": (("compute.branches=2",), {"sampler": "ddim"}),
    "skips on the host, noise in each step": (
        (*HOST, "attention.entropy_scaling=true"),
        {"sampler": "sde-dpmsolver++"},
    ),
    "reused features on the host": (
        (*HOST, "reuse.interval=2", "reuse.depth=1"),
        {"sampler": "dpmsolver++", "steps": 3},
    ),
    "checkpoints after each step, tiles": (
        ("checkpoint.every=1 steps", "decode.tile=32", "decode.frames=7"),
        {"sampler": "dpmsolver++"},
    ),
    "no longer than the trained clip": ((), {"sampler": "ddim", "frames": 9}),
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compute.chunk` in KiB, and small blocks of host memory: so a tiny model has several of each."""
    monkeypatch.setattr(execution, "MIB", 2**10)
    monkeypatch.setattr(offload, "BLOCK_BYTES", 2**12)
    monkeypatch.setattr(offload, "PINNED_BYTES", 2**14)


def configured(model: Path, out: Path, *overrides: str, device: str, **flags: Any) -> RunConfig:
    settings = {"frames": 24, "steps": 2, "size": "64x48", "guidance": 4.0, "seed": 3, "dtype": "fp32"}
    return configure(model, *overrides, **{**settings, "out": str(out), "device": device, **flags}).config


def on_both(model: Path, folder: Path, *overrides: str, **flags: Any) -> tuple[Tensor, Tensor, Findings]:
    """Return the latents of a run on the CPU and on the pretend GPU, and what was found there."""
    run(configured(model, folder / "cpu.mp4", *overrides, device="cpu", **flags))
    with PretendCuda() as cuda:
        run(configured(model, folder / "gpu.mp4", *overrides, device="cuda", **flags))
        found = cuda.findings()
    return latents(folder / "cpu.run"), latents(folder / "gpu.run"), found


def assert_sound(found: Findings, *, steps: int) -> None:
    """Nothing would go wrong on a GPU, and the host waits for it once in each step, for the vote."""
    assert found.races == []
    assert found.early_frees == []
    assert found.contexts == []
    assert found.slow_copies_in(LOOP) == []
    assert found.slow_copies_in(DECODING) == []
    assert len(found.waits_in(LOOP)) == steps


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_the_cpus_latents_and_is_sound(
    name: str, model_folder: Path, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    overrides, flags = RUNS[name]
    expected, ours, found = on_both(model_folder, tmp_path, *overrides, **flags)
    worst = relative_error(ours, expected)
    record_worst(f"{name}: pretend GPU against the CPU", worst)
    assert worst <= CLOSE
    steps = flags.get("steps", 2)
    assert_sound(found, steps=steps)
    blocks = -(-24 // 7) if "tile" in name else 1
    if "tile" in name:
        # x and the last estimate of the clean latents, after all steps but the last
        assert len(found.waits_in(CHECKPOINT)) == 2 * (steps - 1)
        assert len(found.waits_in(DECODING)) == blocks


def test_a_run_goes_on_where_the_driver_pins_no_more_memory_of_the_host(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(configured(model_folder, tmp_path / "cpu.mp4", device="cpu"))
    _warn_of_pageable_memory.cache_clear()
    # less than skip connections take, and than pictures do
    with PretendCuda(pinnable=2**15) as cuda:
        run(configured(model_folder, tmp_path / "gpu.mp4", *HOST, device="cuda"))
        assert (cuda.findings().races, cuda.findings().early_frees) == ([], [])
    assert relative_error(latents(tmp_path / "gpu.run"), latents(tmp_path / "cpu.run")) <= CLOSE
    assert caplog.text.count("the driver pins no more host memory") == 1


def test_a_distilled_model_with_lcm_is_sound(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", tiny_pipeline(time_cond_proj_dim=12))
    expected, ours, found = on_both(model, tmp_path, sampler="lcm", frames=20)
    assert relative_error(ours, expected) <= CLOSE
    assert_sound(found, steps=2)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_sound(dtype: str, model_folder: Path, tmp_path: Path) -> None:
    with PretendCuda() as cuda:
        config = configured(model_folder, tmp_path / "a.mp4", *HOST, device="cuda", dtype=dtype, frames=18)
        run(config)
        assert_sound(cuda.findings(), steps=2)
    assert latents(tmp_path / "a.run").isfinite().all()


def test_a_resumed_run_is_sound(model_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"frames": 18, "steps": 4, "sampler": "sde-dpmsolver++"}
    every = "checkpoint.every=1 steps"
    run(configured(model_folder, tmp_path / "cpu.mp4", device="cpu", **settings))
    with PretendCuda() as cuda:
        config = configured(model_folder, tmp_path / "gpu.mp4", every, device="cuda", **settings)
        stop_after_step(config, tmp_path / "gpu.run", step=1)
        before = len(cuda.findings().waits_in(LOOP))
        assert 1 <= before < 4
        assert exit_code("resume", str(tmp_path / "gpu.run")) == 0
        assert_sound(cuda.findings(), steps=4)
    assert relative_error(latents(tmp_path / "gpu.run"), latents(tmp_path / "cpu.run")) <= CLOSE


def test_edits_and_decoding_again_are_sound(model_folder: Path, tmp_path: Path) -> None:
    def edit(name: str) -> None:
        device = ("--device", name)
        assert exit_code("redo", str(tmp_path / f"{name}.run"), "--frames", "6:11", *device) == 0
        assert exit_code("extend", str(tmp_path / f"{name}-redo.run"), "--frames", "+3", *device) == 0
        options = ("--out", str(tmp_path / f"{name}-again.mp4"), *device)
        assert exit_code("decode", str(tmp_path / f"{name}-redo-extend.run"), *options) == 0

    for name in ("cpu", "cuda"):
        run(configured(model_folder, tmp_path / f"{name}.mp4", device="cpu", frames=20))
    edit("cpu")
    with PretendCuda() as cuda:
        edit("cuda")
        assert_sound(cuda.findings(), steps=4)
    for name in ("redo", "redo-extend"):
        ours, expected = (latents(tmp_path / f"{device}-{name}.run") for device in ("cuda", "cpu"))
        assert relative_error(ours, expected) <= CLOSE


def test_the_search_for_the_layer_of_a_nan_is_sound(own_model: Path, tmp_path: Path) -> None:
    path = own_model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["mid_block.resnets.1.conv1.bias"][0] = float("nan")
    save_file(tensors, path)
    with PretendCuda() as cuda:
        with pytest.raises(NotFiniteError, match=r"layer mid_block\.resnets\.1\.conv1 produced NaN"):
            run(configured(own_model, tmp_path / "a.mp4", *HOST, device="cuda", dtype="fp16"))
        found = cuda.findings()
    assert (found.races, found.early_frees) == ([], [])


def test_the_pipeline_of_the_library_is_sound(model_folder: Path) -> None:
    with PretendCuda() as cuda:
        pipe = Pipeline.from_pretrained(model_folder, device="cuda", dtype="fp32")
        assert pipe.device.type == "cuda"
        # there is room for all networks beside any such video
        assert torch.cuda.memory_allocated() > 0
        video = pipe("a red ball", frames=18, size="64x48", steps=2)
        assert_sound(cuda.findings(), steps=2)
    assert video.frames.shape == (18, 48, 64, 3)


def test_a_pipeline_is_sound_in_a_program_that_has_chosen_another_gpu(model_folder: Path) -> None:
    with PretendCuda(devices=2) as cuda:
        torch.cuda.set_device(1)
        pipe = Pipeline.from_pretrained(model_folder, device="cuda", dtype="fp32")
        loaded_on = torch.cuda.current_device()
        # the program may also choose it after loading
        torch.cuda.set_device(1)
        pipe("a red ball", frames=4, size="64x48", steps=1)
        assert (cuda.findings().races, cuda.findings().early_frees) == ([], [])
        assert (loaded_on, torch.cuda.current_device()) == (1, 1)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_pipeline_keeps_its_networks_if_all_fit_beside_the_video(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each phase fits the smaller GPU by itself, and so do all networks, but not the steps beside all networks."""
    monkeypatch.setattr("vinfinity.planning.memory.GPU_RESERVE", 0)
    settings: dict[str, Any] = {"frames": 16, "size": "320x256", "steps": 1, "decode": {"frames": 1}}
    own = {"model": "mini", "device": "cuda", "dtype": "fp32"}
    loads = Counter[str]()
    for name in ("load_network", "load_decoder"):
        monkeypatch.setattr(networks, name, counted(getattr(networks, name), name, loads))
    planned = make_plan(load_config(prompt="a red ball", **own, **settings), device_memory=24).memory
    need = replace(planned, kept=keeps).needs("cuda")[0]
    with PretendCuda(memory=need) as cuda:
        pipe = Pipeline.from_pretrained(**own)
        # a video of the model's own length would not fit beside all networks
        assert torch.cuda.memory_allocated() == 0
        video = pipe("a red ball", **settings)
        assert (torch.cuda.memory_allocated() > planned.step.weights) == keeps
        assert cuda.findings().races == []
    # text encoder and denoiser, decoder
    assert loads == {"load_network": 2, "load_decoder": 1}
    assert video.frames.shape == (16, 256, 320, 3)


def counted(load: Callable[..., Any], name: str, counts: Counter[str]) -> Callable[..., Any]:
    """`load`, whose calls are counted."""

    def loading(*arguments: Any, **options: Any) -> Any:
        counts[name] += 1
        return load(*arguments, **options)

    return loading


def test_a_pipeline_decodes_without_its_other_networks_if_memory_is_scarce(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vinfinity.planning.memory.GPU_RESERVE", 0)
    with PretendCuda(memory=GIB) as cuda:
        pipe = Pipeline.from_pretrained("mini", device="cuda", dtype="fp32")
        [state] = pipe.denoise("a red ball", frames=4, size="64x48", steps=1)
        loaded = torch.cuda.memory_allocated()
        expected = pipe.decode(state).frames
        # another program takes the rest
        taken = torch.empty(GIB - torch.cuda.memory_allocated() - 2**16, dtype=torch.uint8, device="cuda:0")
        assert (pipe.decode(state).frames == expected).all()
        assert torch.cuda.memory_allocated() < loaded + taken.nbytes
        assert cuda.findings().races == []


def peak_from_now_on(_: None, ranks: Ranks) -> str:
    forget_peak_memory(ranks.device)
    return str(ranks.device)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_one_rank_can_count_its_peak_memory_before_anything_else_uses_the_gpu(device: str) -> None:
    with PretendCuda():
        assert launch(peak_from_now_on, None, gpus=None, device=device, timeout=30.0) == "cuda:0"


def test_a_gpu_without_room_for_one_rank_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at another call")

    with PretendCuda() as cuda:
        monkeypatch.setattr(cuda, "_wrap", full)
        with pytest.raises(OutOfMemoryError) as raised:
            launch(peak_from_now_on, None, gpus=None, device="cuda", timeout=30.0)
        monkeypatch.undo()
    assert raised.value.exit_code == 2
    assert raised.value.message == f"cuda:0: out of memory; {GPU_REMEDY}"


def test_a_gpu_that_another_process_has_to_itself_is_named_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(*_: object) -> None:
        raise RuntimeError(
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might"
        )

    with PretendCuda() as cuda:
        monkeypatch.setattr(cuda, "_wrap", busy)
        with pytest.raises(InputError) as alone:
            launch(peak_from_now_on, None, gpus=None, device="cuda", timeout=30.0)
        monkeypatch.undo()
        monkeypatch.setattr(torch.cuda, "set_device", busy)
        with pytest.raises(InputError) as among_others:
            select_device(torch.device("cuda", 1))
        monkeypatch.undo()
    problem = "is used exclusively by another process, or is not available"
    assert alone.value.message == f"device: cuda:0 {problem}; {GPU_REMEDY}"
    assert among_others.value.message == f"device: cuda:1 {problem}; {GPU_REMEDY}"


def test_a_copy_to_the_host_is_complete_once_it_was_waited_for() -> None:
    with PretendCuda() as cuda:
        copy = to_host(torch.arange(6.0, device="cuda:0") * 2)
        assert cuda.findings().waits == []
        there = copy.wait().clone()
        found = cuda.findings()
    assert there.tolist() == [0, 2, 4, 6, 8, 10]
    assert len(found.waits) == 1
    assert found.races == []
    assert found.slow_copies == []
