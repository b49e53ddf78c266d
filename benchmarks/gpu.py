"""Measures this machine's GPUs with the shapes of VideoCrafter2, and compares them with what the plan says.

    python benchmarks/gpu.py [--gpus N] [--stage NAME] [--keep-going] [--out FILE]
    python benchmarks/gpu.py --device cpu --quick     rehearses the stages without a GPU

Each stage prints its figures with the limits they should keep, and the first that fails ends the script; --keep-going
measures all. The figures, and a description of the machine, are in build/gpu/bench.json. Weights are random: no
download is needed. docs/guides/first-gpu-run.md explains the stages.
"""

import contextlib
import functools
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vinfinity.bench.calls import (
    CallFigures,
    measure_call,
    prepare_call,
    profile_call,
    published_figures,
    timed,
    trace_call,
)
from vinfinity.bench.gpus import Trial, run_script
from vinfinity.bench.pairs import fewest_lanes, least_rate, measure_pairs
from vinfinity.bench.scaling import measure_scaling
from vinfinity.bench.stages import Figure, Stage, at_least, at_most, equals, figure
from vinfinity.bench.subjects import LARGE_SIZE, Subject, find_subject
from vinfinity.denoise.execution import BOTH_BRANCHES_FRAMES, CHUNK_BYTES, Execution
from vinfinity.machine.nvidia import Link
from vinfinity.media.decode import decode_block, decode_tiles
from vinfinity.models.unet3d.configs import VAEConfig
from vinfinity.models.unet3d.vae import AutoencoderKL
from vinfinity.system.precision import fp32_products
from vinfinity.weights.load import channels_last

ROOT = Path(__file__).parents[1]
MIB = 2**20
Skips = Literal["device", "host"]
PLACES: tuple[Skips, ...] = ("device", "host")
# memory outside torch's allocator that a call may take
LIBRARIES = 1.5e9
# most bytes that cuBLAS and cuDNN allocate in addition to the tensors of a call
WORKSPACES = 0.5e9
# frames of each rank, and the least efficiency that several ranks should reach: over PCIe, and over NVLink
EFFICIENCY = {288: (0.95, 0.95), 96: (0.90, 0.90), 24: (0.75, 0.85)}


def frame_counts(trial: Trial) -> tuple[int, ...]:
    return (4, 20) if trial.quick else (24, 96, 288, 600)


@functools.cache
def loaded(device: str, quick: bool) -> tuple[Subject, nn.Module]:
    """Return the UNet that is measured."""
    subject = find_subject("mini" if quick else "large", size=(64, 48) if quick else None)
    return subject, subject.load(torch.float16 if device == "cuda" else torch.float32, device)


def execution(trial: Trial, frames: int, *, skips: Skips = "device") -> Execution:
    """Return what `memory: auto` takes where memory is ample."""
    branches = 2 if frames <= BOTH_BRANCHES_FRAMES else 1
    return Execution(branches=branches, skips=skips, chunk_bytes=CHUNK_BYTES[trial.device][0])


def calls(trial: Trial) -> Iterator[Figure]:
    """Time and memory of calls, with skip connections on the device and on the host."""
    subject, unet = loaded(trial.device, trial.quick)
    gpu = published_figures(trial.gpu_name)
    for frames in frame_counts(trial):
        on_device: CallFigures | None = None
        for skips in PLACES:
            chosen = execution(trial, frames, skips=skips)
            shape, _ = prepare_call(subject, unet, frames=frames, execution=chosen)
            title = f"{frames} frames, skips on {skips}"
            if trial.on_gpu:
                needed = 1.1 * trace_call(shape, chosen)[0] + LIBRARIES
                free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
                if needed > free:
                    yield figure(title, f"left out: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")
                    continue
            rounds = 1 if trial.quick else 3
            found = measure_call(subject, unet, frames=frames, execution=chosen, rounds=rounds, gpu=gpu)
            yield figure(f"{title}, a call of {chosen.branches} branches", found.seconds, "s")
            if found.planned is not None:
                yield figure(f"{title}, planned", found.planned, "s")
                yield at_most(f"{title}, off the plan", abs(found.seconds / found.planned - 1), 0.3)
            yield figure(f"{title}, traced", found.traced / 1e9, "GB")
            yield from _memory(title, found)
            if skips == "device":
                on_device = found
            elif on_device is not None:
                ratio = found.seconds / on_device.seconds
                yield at_most(f"{title}, time to that on the device", ratio, 1.05 if trial.on_gpu else 10.0)


def _memory(title: str, found: CallFigures) -> Iterator[Figure]:
    memory = found.memory
    if memory is None:
        return
    # workspaces of cuBLAS and cuDNN are allocated, too, and no trace has them
    most = (1.02 * found.traced + WORKSPACES) / 1e9
    yield at_most(f"{title}, allocated", memory.allocated / 1e9, most, "GB")
    yield at_least(f"{title}, allocated to the trace", memory.allocated / found.traced, 0.98)
    yield at_most(f"{title}, reserved", memory.reserved / 1e9, (1.10 * found.traced + LIBRARIES) / 1e9, "GB")
    yield equals(f"{title}, retries of the allocator", memory.retries, 0)
    if found.traced_host and memory.pinned is not None:
        yield at_most(f"{title}, pinned to the plan", memory.pinned / found.traced_host, 1.05)


def profiles(trial: Trial) -> Iterator[Figure]:
    """Measure where the time of a call goes."""
    subject, unet = loaded(trial.device, trial.quick)
    for frames, least in ((20, 0.0), (4, 0.0)) if trial.quick else ((288, 0.95), (24, 0.85)):
        _, call = prepare_call(subject, unet, frames=frames, execution=execution(trial, frames))
        call()
        wall = statistics.median(timed(call, trial.torch_device) for _ in range(3))
        found = profile_call(call, trial.torch_device)
        yield figure(f"{frames} frames, a call", wall, "s")
        yield at_least(f"{frames} frames, kernels to wall", found.busy / wall, least)
        yield equals(f"{frames} frames, waits for the device", found.waits, 0)
        for name, seconds in found.operations:
            yield figure(f"{frames} frames, {name}", 1000 * seconds, "ms")


def cudnn_attention(trial: Trial) -> Iterator[Figure]:
    """Call with and without cuDNN's attention, which newer GPUs prefer."""
    subject, unet = loaded(trial.device, trial.quick)
    for frames in frame_counts(trial)[:3:2] if not trial.quick else (4,):
        _, call = prepare_call(subject, unet, frames=frames, execution=execution(trial, frames))
        seconds = {}
        for enabled in (True, False):
            before = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(enabled)
            try:
                call()
                seconds[enabled] = statistics.median(timed(call, trial.torch_device) for _ in range(3))
            finally:
                torch.backends.cuda.enable_cudnn_sdp(before)
        yield figure(f"{frames} frames, with", seconds[True], "s")
        yield figure(f"{frames} frames, without", seconds[False], "s")
        yield figure(f"{frames} frames, without to with", seconds[False] / seconds[True])


def decoding(trial: Trial) -> Iterator[Figure]:
    """Yield the autoencoder of Stable Diffusion with random weights: whole frames and tiles, with TF32 and without."""
    device = trial.torch_device
    widths = (32, 32, 64, 64) if trial.quick else (128, 256, 512, 512)
    torch.manual_seed(0)
    with torch.device(device):
        decoder = AutoencoderKL(VAEConfig(block_out_channels=widths))
    decoder.eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.data = channels_last(parameter.data)
    sizes = (
        {(64, 48): (None, 2), (96, 64): (8, 2)}
        if trial.quick
        else {LARGE_SIZE: (None, 8), (1024, 576): (64, 2)}
    )
    for (width, height), (tile, frames) in sizes.items():
        latents = torch.randn(4, frames, height // 8, width // 8)
        title = f"{width}x{height}{'' if tile is None else ', in tiles'}"
        pieces = {}
        for tf32 in (True, False):
            work = functools.partial(_decoded, decoder, latents.to(device), tile=tile, tf32=tf32)
            pieces[tf32] = work()
            seconds = statistics.median(timed(work, device) for _ in range(3))
            yield figure(f"{title}, TF32 {'on' if tf32 else 'off'}", 1000 * seconds / frames, "ms a frame")
        both = zip(pieces[True], pieces[False], strict=True)
        difference = max((with_ - without).abs().max().item() for with_, without in both)
        yield at_most(f"{title}, TF32 on to off", difference, 2, "levels")
        # the first call may set things up
        decode_block(decoder, latents, size=(width, height), tile=tile).wait()
        with _no_waits(trial):
            block = decode_block(decoder, latents, size=(width, height), tile=tile)
        yield equals(f"{title}, frames of a block", len(block.wait()), frames)


@torch.inference_mode()
def _decoded(decoder: AutoencoderKL, latents: Tensor, *, tile: int | None, tf32: bool) -> list[Tensor]:
    """Return the pieces of decoded pictures, in levels from 0 to 255. latents: (c, f, h, w)."""
    x = latents.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    with fp32_products(tf32=tf32):
        return [
            piece.float().mul(127.5).add_(127.5).round_().clamp_(0, 255)
            for _, _, piece in decode_tiles(decoder, x, tile=tile)
        ]


@contextlib.contextmanager
def _no_waits(trial: Trial) -> Iterator[None]:
    """Raise inside the block if the host waits for the GPU."""
    if not trial.on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pairs(trial: Trial) -> Iterator[Figure]:
    """Rates of messages between each two GPUs."""
    ranks = trial.several()
    sizes = (MIB, 2 * MIB) if trial.quick else (MIB, 50 * MIB)
    if trial.on_gpu:
        torch.cuda.empty_cache()
    found = measure_pairs(ranks=ranks, sizes=sizes, rounds=3, device=trial.device)
    least = least_rate(links(trial)) / 1e9 if trial.on_gpu else 0.0
    for pair in found:
        title = f"ranks {pair.first} and {pair.second}, {pair.size // MIB} MiB"
        if pair.size == sizes[-1]:
            yield at_least(title, pair.rate / 1e9, least, "GB/s")
        else:
            yield figure(title, pair.rate / 1e9, "GB/s")
        yield equals(f"{title}, intact", pair.intact, True)


def links(trial: Trial) -> Sequence[Link]:
    """Between all pairs of GPUs, as far as the driver says."""
    return getattr(trial.facts.nvidia, "links", ())


def scaling(trial: Trial) -> Iterator[Figure]:
    """Yield a call on one GPU against the same call on all of them."""
    ranks = trial.several()
    model = "mini" if trial.quick else "large"
    for frames, (pcie, nvlink) in {8: (0.0, 0.0)}.items() if trial.quick else EFFICIENCY.items():
        title = f"{ranks} x {frames} frames"
        if trial.on_gpu:
            subject, unet = loaded(trial.device, trial.quick)
            both = Execution(branches=2, skips="device", chunk_bytes=CHUNK_BYTES["cuda"][0])
            shape, _ = prepare_call(subject, unet, frames=ranks * frames, execution=both)
            needed = 1.1 * trace_call(shape, both)[0] + LIBRARIES
            # rank 0 needs it while this process has its own copy, but not what earlier stages left behind
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
            if needed > free:
                yield figure(
                    title, f"left out: needs {needed / 1e9:.1f} GB on one GPU, {free / 1e9:.1f} are free"
                )
                continue
        rounds = 1 if trial.quick else 3
        times = measure_scaling(model, ranks=ranks, frames=ranks * frames, rounds=rounds, device=trial.device)
        yield figure(f"{title}, one rank", times.median("alone"), "s")
        yield figure(f"{title}, all ranks", times.median("together"), "s")
        efficiency = statistics.median(times.ratios("alone", "together")) / ranks
        least = nvlink if trial.on_gpu and fewest_lanes(links(trial)) else pcie
        yield at_least(f"{title}, efficiency", efficiency, least)


STAGES = [
    Stage(
        "calls",
        "30 % off the planned time; memory as traced within 2 % and 0.5 GB; host skips cost 5 %",
        calls,
    ),
    Stage("profiles", "kernels fill 95 % of a long call and 85 % of a short one; no waits", profiles),
    Stage("cudnn-attention", "reported only", cudnn_attention),
    Stage("decoding", "TF32 changes frames by 2 levels at most; no waits", decoding),
    Stage("pairs", "8 GB/s over PCIe, half of what its lanes have over NVLink, with 50 MiB", pairs),
    Stage("scaling", "0.95 at 288 frames a rank, 0.90 at 96, 0.75 (PCIe) or 0.85 (NVLink) at 24", scaling),
]


if __name__ == "__main__":
    sys.exit(run_script("bench-gpu", __doc__ or "", STAGES, out=ROOT / "build" / "gpu" / "bench.json"))
