"""Plans against real runs: memory, arithmetic, disk space, and whether a run fits."""

import gc
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from oracles.command_line import Cli
from oracles.machines import card_line, install_nvidia_smi
from oracles.networks import load_unet
from oracles.reference import configure, fill
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vinfinity.config import ComputeConfig, DecodeConfig, RunConfig, load
from vinfinity.denoise.execution import MIB, Execution
from vinfinity.denoise.state import State
from vinfinity.denoiser import make_denoiser
from vinfinity.errors import InputError
from vinfinity.inputs import shared_text
from vinfinity.job import Job, prepare
from vinfinity.models.frame_text import FrameText
from vinfinity.models.offload import PINNED_BYTES
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.networks import Networks
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import LocalExchange
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.estimate import work_seconds
from vinfinity.planning.fit import Fit, choose, decide, find_fit
from vinfinity.planning.machines import GPUS, find_gpu
from vinfinity.planning.memory import GPU_RESERVE, Budget, memory_bound, trace_memory
from vinfinity.planning.meter import LiveBytes, WorkCounter
from vinfinity.planning.outline import Outline, outline
from vinfinity.planning.plan import Plan, make_plan
from vinfinity.planning.trace import (
    TIMESTEP,
    CallShape,
    call_context,
    empty_denoiser,
    network_call,
    trace_decode,
    trace_step,
    trace_work,
)
from vinfinity.run import run
from vinfinity.system.memory import free_in_group, free_on_host
from vinfinity.weights.card import model_defaults, planned_card, read_card
from vinfinity.weights.registry import PUBLISHED

REPOSITORY = Path(__file__).parents[2]
CPU = Ranks(device=torch.device("cpu"))
TINY = UNetConfig(
    block_out_channels=(16, 32),
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    layers_per_block=1,
    attention_head_dim=8,
    norm_num_groups=8,
    cross_attention_dim=16,
)


def config_of(model: Path | str = "mini", *overrides: str, **flags: Any) -> RunConfig:
    return configure(model, *overrides, **flags).config


def outline_of(
    model: Path | str, *overrides: str, ranks: int = 1, device: Any = "cpu", **flags: Any
) -> Outline:
    config = config_of(model, *overrides, **flags)
    return outline(config, read_card(str(model)), device=device, ranks=ranks)


def tiny_call(frames: int, *, ranks: int = 1) -> CallShape:
    """Return the call of an inner rank. frames: of the whole video."""
    return CallShape(
        family=UNET3D,
        config=TINY,
        shards=FrameShards(frames, ranks),
        rank=ranks // 2,
        latent_size=(8, 6),
        scopes=Scopes(anchor_bias=10.0),
        dtype=torch.float32,
    )


# ---- counting ----


def test_live_bytes_counts_live_tensors_and_views_once() -> None:
    with LiveBytes("cpu") as live:
        a = torch.zeros(1000, dtype=torch.uint8)
        view = a[:10]
        assert live.now == 1000
        del a
        assert live.now == 1000
        del view
        gc.collect()
        assert live.now == 0
        b = torch.zeros(300, dtype=torch.uint8) + 1
        assert live.now == 300
        assert live.peak == 1000
        del b


def test_live_bytes_counts_host_and_device_separately() -> None:
    with LiveBytes() as live:
        x = torch.empty(100, dtype=torch.float16, device="meta")
        on_host = torch.empty(100, dtype=torch.float16, device="cpu")
        on_host.copy_(x)
        del x
        on_device = on_host.to("meta")
        copy = on_device.to("cpu")
        assert (live.now, live.host_now) == (200, 400)
        del on_host, copy
    assert (live.now, live.peak, live.host_now, live.host_peak) == (200, 200, 0, 400)
    del on_device


class ThreeLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 10)
        self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor, picture: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> None:
        self.linear(x)
        self.conv(picture)
        F.scaled_dot_product_attention(q, kv, kv)


def test_arithmetic_and_bytes_match_a_count_by_hand() -> None:
    with torch.device("meta"):
        network = ThreeLayers()
        inputs = (torch.empty(5, 6), torch.empty(2, 4, 7, 9), torch.empty(3, 11, 16), torch.empty(3, 13, 16))
        with torch.inference_mode(), WorkCounter() as work:
            network(*inputs)
    linear = 2 * 5 * 6 * 10
    conv = 2 * (2 * 8 * 7 * 9) * (2 * 3 * 3)
    attention = 2 * (2 * 3 * 11 * 13 * 16)
    assert work.flops == linear + conv + attention
    assert work.attention_flops == attention
    assert work.operations == {
        (linear, 4 * (5 * 6 + 10 * 6 + 10 + 5 * 10)): 1,
        (conv, 4 * (2 * 4 * 63 + 8 * 2 * 9 + 8 + 2 * 8 * 63)): 1,
        (attention, 4 * 3 * 16 * (11 + 13 + 13 + 11)): 1,
    }


def test_what_is_overwritten_or_only_looked_at_is_not_read() -> None:
    x, y = torch.empty(10, device="meta"), torch.empty(10, device="meta")
    with torch.inference_mode(), WorkCounter() as work:
        x.copy_(y)
        x.zero_()
        torch.zeros_like(x)
    assert work.operations == {(0, 2 * x.nbytes): 1, (0, x.nbytes): 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_laid_out_in_memory_as_on_a_cpu(dtype: torch.dtype) -> None:
    """Otherwise traces have copies that runs do not have."""
    strides = []
    for device in ("cpu", "meta"):
        picture = torch.zeros(2, 6, 7, 8, dtype=dtype, device=device).permute(0, 3, 1, 2)
        weight = torch.zeros(5, 8, 3, 3, dtype=dtype, device=device)
        heads = torch.zeros(6, 32, 3, 16, dtype=dtype, device=device).transpose(1, 2)
        with torch.inference_mode(), LiveBytes(device):
            found = F.conv2d(picture, weight), F.scaled_dot_product_attention(heads, heads, heads)
        strides.append([tensor.stride() for tensor in found])
    assert strides[0] == strides[1]


def test_arithmetic_of_a_unet_matches_torchs_own_counter() -> None:
    """On real tensors, where composite operations arrive in parts. In fp64, for which no layer pads its input."""
    shape = tiny_call(20)
    traced = trace_work(shape).counter.flops
    unet = UNet(TINY).double()
    context = temporal_context(LocalExchange(), shape.shards, 0, shape.scopes)
    # torch's counter has no formula for fused attention on CPUs
    unfused = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), unfused, FlopCounterMode(display=False) as counter:
        x, text = torch.randn(1, 4, 20, 8, 6).double(), torch.randn(1, 77, 16).double()
        unet(x, torch.tensor([1.0]), FrameText.same(text), context)
    assert traced == counter.get_total_flops()


# ---- memory ----


@pytest.mark.parametrize(
    ("frames", "ranks", "group", "chunk_bytes"),
    [
        *(
            (frames, ranks, None, 2**chunk)
            for frames, ranks in ((40, 1), (150, 1), (150, 4), (12, 1))
            for chunk in (16, 22)
        ),
        (400, 1, None, 2**15),
        (200, 1, 8, 2**16),
        (200, 3, 8, 2**16),
        (200, 3, 24, 2**16),
    ],
)
def test_tracing_some_pieces_of_each_shape_finds_the_peak_of_all(
    frames: int, ranks: int, group: int | None, chunk_bytes: int
) -> None:
    shape = tiny_call(frames, ranks=ranks)
    shape = replace(shape, shards=FrameShards(frames, ranks, group))
    execution = Execution(branches=1, skips="device", chunk_bytes=chunk_bytes)
    peaks = []
    for few_pieces in (False, True):
        exchange = shape.traced_exchange()
        context = call_context(shape, execution, exchange)
        # the biases of all blocks, which stay from call to call
        context.attention.prepare(shape.dtype)
        call = network_call(shape, execution, exchange, context=context, few_pieces=few_pieces)
        x = torch.empty(shape.latents, device="meta")
        with torch.inference_mode(), LiveBytes() as live:
            call(x, TIMESTEP)
        peaks.append(live.peak)
    # never less; slightly more if two blocks become neighbours that are not in the full plan
    assert peaks[0] <= peaks[1] <= 1.01 * peaks[0]


@pytest.mark.parametrize("overrides", [(), ("sampler=dpmsolver++", "guidance=1"), ("sampler=lcm",)], ids=str)
def test_a_traced_step_needs_the_memory_of_a_real_one(overrides: tuple[str, ...], model_folder: Path) -> None:
    """Against the real prediction and sampler on data, as in a run."""
    frames = 40
    job = prepare(
        config_of(model_folder, *overrides, frames=frames, device="cpu", dtype="fp32", size="64x48")
    )
    execution = Execution(branches=1, skips="device", chunk_bytes=32 * MIB)
    traced = trace_memory(outline(job.config, job.card, device="cpu", ranks=1), execution).step
    assert real_step(job, execution) == pytest.approx(traced.working, rel=0.01)
    unet = load_unet(job.card.folder / "unet", device="cpu", dtype=torch.float32)
    assert traced.weights == sum(parameter.nbytes for parameter in unet.parameters())


def real_step(job: Job, execution: Execution) -> int:
    """Peak memory of a second step on the CPU, in bytes."""
    team = CPU.team(job.config.frames, split=False)
    with torch.inference_mode():
        text = shared_text(job, Networks(CPU.device), CPU)
        unet = load_unet(job.card.folder / "unet", device="cpu", dtype=torch.float32)
        denoiser = make_denoiser(job, unet, text, team, team.exchange(), execution)
        shape = (1, job.latent[0], job.config.frames, *job.latent[1:])
        timestep = job.sampler.timesteps[1]
        # everything that is created once is created here
        denoiser.guided(denoiser.call(torch.randn(shape), timestep))
        with LiveBytes("cpu") as live:
            state = State(step=0, x=torch.randn(shape))
            state = job.sampler.step(state, torch.randn(shape), lambda step: torch.randn(shape))
            live.peak = live.now
            prediction = denoiser.guided(denoiser.call(state.x, timestep))
            job.sampler.step(state, prediction, lambda step: torch.randn(shape))
    return live.peak


def test_skip_connections_on_the_host_leave_the_device() -> None:
    """All of them are on the host at once, in pinned memory of fixed size; the device holds two chunks of one."""
    sampler = outline_of("mini").sampler
    on_device, on_host = (
        trace_step(tiny_call(400), Execution(branches=1, skips=skips, chunk_bytes=2**16), sampler, branches=1)
        for skips in ("device", "host")
    )
    assert on_device.host == 0
    assert on_host.host == -(-on_device.skips // PINNED_BYTES) * PINNED_BYTES
    assert on_host.skips < 0.5 * on_device.skips
    assert on_host.working <= on_device.working


def test_shorter_videos_can_be_planned_where_prompts_come_later() -> None:
    """What fits instead of a video that does not is looked for at other lengths."""
    story = outline_of("mini", "prompts=[{at: 40, text: a ball, cut: true}]", frames=60)
    assert story.call.timeline is not None
    assert story.with_changes(frames=20).call.frames == 20


def test_ranks_need_memory_for_messages() -> None:
    execution = Execution(branches=1, skips="device", chunk_bytes=2**16)
    sampler = outline_of("mini").sampler
    alone, shared = (
        trace_step(tiny_call(frames, ranks=ranks), execution, sampler, branches=1)
        for frames, ranks in ((100, 1), (400, 4))
    )
    assert alone.exchange == 0
    # 8 frames of each neighbour and the anchors, sent and received, of one hidden state of (8, 6, 16 or 64) channels
    assert shared.exchange >= 2 * 16 * 48 * 16 * 4
    assert shared.working >= alone.working + shared.exchange / 2
    work = trace_work(tiny_call(400, ranks=4))
    assert work.bytes > 0
    assert work.messages >= work.waits > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": 3},
        {"frames": 96},
        {"frames": 30, "size": "200x40"},
        {"frames": 2000, "size": "32x32"},
        {"frames": 40, "ranks": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["mini", "tiny"])
def test_the_bound_without_a_trace_is_above_the_memory_needed(
    model: str, changes: dict[str, Any], model_folder: Path
) -> None:
    run = outline_of(model_folder if model == "tiny" else "mini", **changes)
    for execution in run.executions:
        assert trace_memory(run, execution).needs("cpu")[1] <= memory_bound(run, execution)


def test_decoding_is_bounded_by_its_block() -> None:
    run = outline_of("mini")
    few, many = (
        trace_decode(run.decoder, replace(run.blocks, frames=frames), (10, 16)).working for frames in (2, 8)
    )
    assert 3 < many / few <= 4


def test_decoding_is_planned_with_the_decoder_and_its_settings(tmp_path: Path) -> None:
    tiny = AutoencoderTiny()
    fill(tiny)
    tiny.save_pretrained(tmp_path / "tiny")
    whole = outline_of("mini", size="2048x1280")
    tiled = outline_of("mini", "decode.tile=256", size="2048x1280")
    other = outline_of("mini", size="2048x1280", decoder=str(tmp_path / "tiny"))
    sizes = [
        trace_decode(run.decoder, replace(run.blocks, frames=1), run.latent_shape[1:])
        for run in (whole, tiled, other)
    ]
    assert sizes[1].device < sizes[0].device / 2
    assert sizes[2].weights != sizes[0].weights
    assert outline_of("mini", "decode.frames=3").blocks.frames == 3


def test_plans_include_reused_features() -> None:
    """Deep features of both branches: the outermost level's 96 channels in fp32, stored from step to step."""
    settings: dict[str, Any] = {"frames": 200, "guidance": 2.0, "size": "256x160"}
    plain, reusing = (
        trace_memory(run, run.executions[-1]).step.working
        for run in (outline_of("mini", **settings), outline_of("mini", "reuse.interval=2", **settings))
    )
    features = 2 * 200 * 10 * 16 * 96 * 4
    assert 0.4 * features <= reusing - plain <= 1.1 * features


# ---- whether it fits ----


def test_the_first_execution_that_fits_is_chosen_within_the_settings(model_folder: Path) -> None:
    planned = outline_of(model_folder, "decode.frames=1", device="cuda", frames=6000, size="512x512")
    first, *_, last = planned.executions
    lean, fast = (trace_memory(planned, execution).needs("cuda")[0] for execution in (last, first))
    assert lean < fast
    for available, chosen, fits in ((fast, first, True), (lean, last, True), (lean - 1, last, False)):
        memory, found = choose(planned, Budget(device=available, host=None, where="a GPU"))
        assert (memory.needs("cuda")[0], found) == (trace_memory(planned, chosen).needs("cuda")[0], fits)
    forced = planned.with_changes(compute=ComputeConfig(chunk=7))
    assert choose(forced, Budget(device=10**12, host=None, where="a GPU"))[0].execution.chunk_bytes == 7 * MIB


def test_a_run_that_cannot_fit_is_refused_with_settings_that_do(model_folder: Path) -> None:
    planned = outline_of(
        model_folder, "compute.chunk=1", "decode.frames=1", device="cuda", frames=240, size="256x192"
    )
    needed = trace_memory(planned, planned.executions[-1]).needs("cuda")[0]
    available = GPU_RESERVE + int(0.6 * (needed - GPU_RESERVE))
    budget = Budget(device=available, host=None, where="a GPU")
    refused = decide(planned, budget)
    assert isinstance(refused, InputError)
    assert refused.exit_code == 2
    assert str(refused).startswith("frames: 240 need ")
    assert " on a GPU (" in str(refused)
    options = dict(part.split() for part in refused.remedy.removeprefix("try ").split(", or "))
    assert {"--frames", "--size"} <= set(options)
    for changes in (
        {"frames": int(options["--frames"])},
        {"size": options["--size"]},
    ):
        assert choose(planned.with_changes(**changes), budget)[1]
    most = trace_memory(planned.with_changes(frames=int(options["--frames"])), planned.executions[-1])
    assert most.needs("cuda")[0] - GPU_RESERVE > 0.8 * (available - GPU_RESERVE)


def test_a_fit_leaves_memory_for_cudas_libraries(model_folder: Path) -> None:
    planned = outline_of(model_folder, device="cuda", frames=240, size="256x192")
    for execution in planned.executions:
        memory = trace_memory(planned, execution)
        least = round(1.10 * memory.device) + GPU_RESERVE
        assert memory.fits(Budget(device=least, host=None, where="a GPU"), "cuda")
        assert not memory.fits(Budget(device=least - 1, host=None, where="a GPU"), "cuda")


def test_a_plan_leaves_more_to_an_allocator_without_expandable_segments(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = outline_of(model_folder, device="cuda", frames=240, size="256x192")
    memory = trace_memory(planned, planned.executions[0])
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert memory.needs("cuda")[0] == round(1.35 * memory.device) + GPU_RESERVE


def test_settings_that_prevent_a_run_from_fitting_are_named(model_folder: Path) -> None:
    planned = outline_of(model_folder, "decode.frames=1", device="cuda", frames=6000, size="512x512")
    leanest = trace_memory(planned, planned.executions[-1]).needs("cuda")[0]
    budget = Budget(device=leanest, host=None, where="a GPU")
    refused = decide(planned.with_changes(memory="fast"), budget)
    assert isinstance(refused, InputError)
    assert "memory=auto" in refused.remedy


def test_a_decoding_block_that_is_too_large_is_refused_with_a_smaller_one(model_folder: Path) -> None:
    planned = outline_of(model_folder, "decode.frames=64", device="cuda", frames=64, size="64x64")
    small = planned.with_changes(decode=DecodeConfig(frames=1))
    needed = trace_memory(small, small.executions[-1]).needs("cuda")[0]
    refused = decide(planned, Budget(device=needed, host=None, where="a GPU"))
    assert isinstance(refused, InputError)
    assert refused.remedy == "try decode.frames=1"


def test_short_runs_start_without_a_trace() -> None:
    job = prepare(config_of("mini", frames=96, device="cpu"))
    trace_step.cache_clear()
    execution = find_fit(job, CPU).fastest
    assert trace_step.cache_info().misses == 0
    assert execution.skips == "device"


def test_the_memory_of_kept_weights_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job uses them, or frees them: what fits alone must fit after another video of a batch, too."""
    job = prepare(config_of("mini", frames=96, device="cpu"))
    monkeypatch.setattr("vinfinity.planning.fit.free_on_host", lambda *, sharing: 10**8)
    with pytest.raises(InputError, match="frames: 96 need"):
        find_fit(job, CPU)
    assert find_fit(job, CPU, loaded=10**10).ample


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_networks_are_kept_if_all_fit_beside_the_largest_phase(device: Any, model_folder: Path) -> None:
    planned = outline_of(model_folder, device=device, frames=240, size="256x192", memory="low")
    alone = trace_memory(planned, planned.executions[-1])
    kept = replace(alone, kept=True)
    phases = (alone.text, alone.step, alone.decoding)
    assert kept.device == sum(phase.weights for phase in phases) + max(phase.working for phase in phases)
    at = device == "cpu"
    least, enough = alone.needs(device)[at], kept.needs(device)[at]
    assert least < enough
    for have, keeps in ((least, False), (enough - 1, False), (enough, True)):
        budget = Budget(device=None if at else have, host=have if at else None, where="here")
        for keep in (False, True):
            fit = decide(planned, budget, keep=keep)
            assert isinstance(fit, Fit)
            assert fit.keeps == (keep and keeps)


def test_generate_refuses_a_run_that_cannot_fit_before_weights_load(tmp_path: Path) -> None:
    """More frames than this machine has memory for a single hidden state of."""
    # bytes of one frame of 4096x4096
    state = 512 * 512 * 48 * 4
    frames = -(-free_on_host() // state)
    out = tmp_path / "a.mp4"
    settings = ("compute.chunk=512", "decode.frames=1")
    resolved = configure("mini", *settings, frames=frames, size="4096x4096", device="cpu", out=str(out))
    trace_step.cache_clear()
    with pytest.raises(InputError) as raised:
        run(resolved.config)
    # the remedy names settings that were traced; each takes about half a second, and of long clips two are traced
    assert trace_step.cache_info().misses <= 16
    assert raised.value.exit_code == 2
    assert str(raised.value).startswith(f"frames: {frames} need ")
    assert list(tmp_path.iterdir()) == []


def test_limits_of_control_groups_are_respected(tmp_path: Path) -> None:
    files = tmp_path / "proc"
    job = tmp_path / "sys" / "slurm" / "job"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("max\n")
    (job / "memory.current").write_text("5\n")
    above = job.parent
    (above / "memory.max").write_text("1000\n")
    (above / "memory.current").write_text("700\n")
    (above / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    files.write_text("0::/slurm/job\n")
    assert free_in_group(files, tmp_path / "sys") == 450
    old = tmp_path / "sys" / "memory" / "job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("300\n")
    (old / "memory.usage_in_bytes").write_text("100\n")
    (old / "memory.stat").write_text("total_inactive_file 20\n")
    files.write_text("4:memory:/job\n2:cpu:/job\n")
    assert free_in_group(files, tmp_path / "sys") == 220
    files.write_text("0::/\n")
    assert free_in_group(files, tmp_path / "sys") == 2**63


# ---- plans ----


def test_an_edit_is_planned_by_the_frames_it_computes() -> None:
    """Denoising follows the selection; attention, decoding and disk space follow the whole video."""
    config, card = config_of("mini", frames=96), read_card("mini")
    whole, edit = (
        outline(config, card, device="cpu", ranks=3, denoised_frames=frames) for frames in (None, 12)
    )
    assert (whole.frames_per_rank, edit.frames_per_rank) == ([32, 32, 32], [4, 4, 4])
    assert edit.call.scopes == whole.call.scopes is not None
    assert edit.blocks == whole.blocks
    assert edit.with_changes(ranks=2).frames_per_rank == [6, 6]
    assert edit.with_changes(frames=8).config.frames == 8


@pytest.fixture(scope="module")
def papers_run() -> Plan:
    """2,300 frames of VideoCrafter2 on 8 GPUs, planned without its weights."""
    card = planned_card("videocrafter2")
    settings = ("sampler=sde-dpmsolver++", "steps=30", "decode.where=ranks")
    flags = {"frames": 2300, "gpus": 8, "size": "512x320", "dtype": "fp16"}
    return make_plan(configure_planned(card.name, *settings, **flags), gpu="RTX 6000 Ada")


def configure_planned(model: str, *overrides: str, **flags: Any) -> RunConfig:
    given = {"model": model, "prompt": "a red ball", **flags}
    card = partial(model_defaults, planned=True)
    return load(None, overrides=overrides, flags=given, card=card).config


def test_the_estimate_reproduces_the_papers_time(papers_run: Plan) -> None:
    """arXiv 2406.16260: 312 s on 8 x RTX 6000 Ada, decoding included."""
    gpu = GPUS["RTX 6000 Ada"]
    assert papers_run.seconds(gpu).total == pytest.approx(312, rel=0.25)
    few, many = papers_run.seconds(gpu, distilled=True), papers_run.seconds(gpu)
    # 4 steps of one branch in place of 30 of two, and the same decoding
    assert few.denoising == pytest.approx(many.denoising / 15)
    assert few.decoding == many.decoding
    assert papers_run.fits


def test_exact_products_take_the_time_of_a_gpu_without_tensor_cores() -> None:
    """Denoising in fp32 is exact; decoding uses TF32, at half the rate of 16 bits."""
    work, gpu = WorkCounter(), GPUS["A100 80GB"]
    work.operations[10**15, 0] = 1
    half, tf32, fp32 = (work_seconds(work, gpu, products=products) for products in ("half", "tf32", "fp32"))
    assert tf32 == pytest.approx(2 * half)
    assert fp32 == pytest.approx(16 * half, rel=1e-6)
    plans = [
        make_plan(config_of("mini", frames=96, dtype=dtype), gpu="A100 80GB") for dtype in ("fp16", "fp32")
    ]
    assert plans[1].seconds(gpu).decoding == plans[0].seconds(gpu).decoding


def test_videocrafter2_is_planned_from_its_published_architecture(papers_run: Plan) -> None:
    if not papers_run.run.card.published:
        pytest.skip("videocrafter2 is installed")
    assert papers_run.run.frames_per_rank == [288] * 7 + [284]
    card = papers_run.run.card
    unet = empty_denoiser(card.family, card.configs["unet"], torch.float16)
    assert sum(parameter.numel() for parameter in unet.parameters()) == pytest.approx(1.41e9, rel=0.01)
    work = papers_run.call.counter
    # known: 0.735 TFLOP per frame and branch, without attention
    assert (work.flops - work.attention_flops) / 288 == pytest.approx(0.735e12, rel=0.005)
    # docs/log/2026-11-28.md: 1,410 GB before keys and values were projected into their places
    assert sum(moved * count for (_, moved), count in work.operations.items()) <= 1.1e12
    # see tests/bench
    assert papers_run.messages_per_step == 2 * 122 * 7


def test_models_that_take_guidance_as_an_input_have_one_branch() -> None:
    plan = make_plan(configure_planned("t2v-turbo-vc2", frames=16, device="cuda"), gpu="H100 SXM")
    assert plan.run.branches == 1
    assert plan.steps == 4
    assert plan.run.card.traits.denoiser.guidance_width == 256


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_known_model_has_an_architecture_for_plans(name: str) -> None:
    planned = outline(configure_planned(name, frames=4), planned_card(name), device="cuda", ranks=1)
    traits, text = planned.card.traits.denoiser, planned.card.configs["text_encoder"]
    assert traits.text_width == (text.d_model if hasattr(text, "d_model") else text.hidden_size)
    assert traits.channels == planned.decoder.config.latent_channels


def test_every_known_gpu_can_be_planned_for() -> None:
    config = config_of("mini", frames=20)
    plans = {name: make_plan(config, gpu=name) for name in GPUS}
    assert all(plan.fits and plan.gpu == name for name, plan in plans.items())
    seconds = {name: plan.seconds(GPUS[name]).total for name, plan in plans.items()}
    assert all(0 < value < 60 for value in seconds.values())
    assert find_gpu("nvidia rtx-4090") == "RTX 4090"
    with pytest.raises(InputError, match="did you mean RTX 4090"):
        find_gpu("RTX 4900")


def test_ranks_split_over_branches_compute_one_branch_each() -> None:
    both = outline_of("mini", "parallel.split_guidance=true", "guidance=6", ranks=4, device="cuda", frames=30)
    assert both.frames_per_rank == [15, 15, 15, 15]
    assert (both.branches_per_rank, both.branches) == (1, 2)


def test_plan_prints_json(cli: Cli) -> None:
    code, out, err = cli("plan", "--frames", "50", "--gpus", "3", "--gpu", "l40s", "--json", "--steps", "7")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert plan["frames_per_rank"] == [16, 16, 18]
    assert plan["steps"] == 7
    assert plan["fits"] is True
    memory = plan["device_memory"]
    parts = memory["state"] + memory["skips"] + memory["exchange"] + memory["temporaries"]
    assert parts == memory["working"]
    assert memory["peak"] <= memory["needed"] <= memory["available"]
    assert set(plan["time"]) == {"L40S"}
    assert plan["time"]["L40S"]["total"] > plan["time"]["L40S"]["four_steps"]["total"] > 0


def test_a_plan_that_does_not_fit_exits_with_2_and_names_settings_that_do(cli: Cli) -> None:
    code, out, err = cli("plan", "--frames", "3000", "--device-memory", "1.7")
    assert code == 2
    assert "device memory" in out
    assert "fits " in out
    assert err.startswith("error: frames: 3000 (--frames) need ")
    assert "; try --gpus " in err


def test_a_plan_asks_the_driver_for_free_memory_and_makes_no_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [card_line(index, free=70000 - 10000 * index) for index in range(3)]
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, *lines))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def make_a_context(*_: object) -> None:
        raise AssertionError("a context was made")

    for name in ("mem_get_info", "get_device_name", "init", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, make_a_context)
    for visible, ranks, free in ((None, 1, 70000), (None, 3, 50000), ("1,0", 2, 60000), ("GPU-22", 1, 50000)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        plan = make_plan(config_of("mini", frames=96, device="cuda", gpus=ranks))
        assert plan.budget.device == free * 2**20
        assert plan.budget.where == "NVIDIA A100-SXM4-80GB"


def test_dry_run_shows_memory(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("generate", "-p", "a red ball", "--frames", "20", "--device", "cpu", "--dry-run")
    assert code == 0
    assert "host memory" in out
    assert "guidance branches at once" in out


def test_plan_refuses_contradicting_options(cli: Cli) -> None:
    assert "did you mean" in cli.refused("plan", "--gpu", "H100 SMX")
    assert "contradicts" in cli.refused("plan", "--gpu", "L40S", "--device", "cpu")
    assert "is more than the 3 frames" in cli.refused("plan", "--frames", "3", "--gpus", "4")


@pytest.mark.slow
def test_2300_frames_fit_one_gpu_of_48_gb() -> None:
    planned = outline(
        configure_planned("videocrafter2", "sampler=sde-dpmsolver++", frames=2300),
        planned_card("videocrafter2"),
        device="cuda",
        ranks=1,
    )
    sizes = {
        frames: trace_memory(planned.with_changes(frames=frames), planned.executions[0]).step.working
        for frames in (288, 576, 2300)
    }
    slope = (sizes[576] - sizes[288]) / 288
    assert slope <= 14e6
    assert (sizes[2300] - sizes[576]) / 1724 <= 1.01 * slope
    assert choose(planned, Budget(device=GPUS["RTX A6000"].memory, host=None, where="RTX A6000"))[1]
    assert sizes[2300] + 2.9e9 <= 40e9


@pytest.mark.parametrize("sampler", ["ddim", "sde-dpmsolver++"])
def test_a_run_uses_the_disk_space_that_was_planned(sampler: str, model_folder: Path, tmp_path: Path) -> None:
    settings = {"out": str(tmp_path / "a.mp4"), "frames": 9, "steps": 6, "size": "64x64", "device": "cpu"}
    config = configure(model_folder, "checkpoint.every=1 steps", sampler=sampler, **settings).config
    plan = make_plan(config)
    run(config)
    lines = [json.loads(line) for line in (tmp_path / "a.run" / "events.jsonl").read_text().splitlines()]
    written = {line["event"]: line["bytes"] for line in lines if "bytes" in line}
    # bytes of a safetensors header
    header = 400
    assert 0 < written["checkpoint"] - plan.checkpoint_bytes < header
    assert 0 < written["latents"] - plan.latents_bytes < header
    assert plan.disk_bytes >= 3 * plan.checkpoint_bytes
