"""Tries on this machine's GPUs what was only tried on CPUs so far: ten minutes on one GPU, fifteen on several.

    python tests/campaigns/gpu.py [--gpus N] [--stage NAME] [--keep-going] [--out FILE]
    python tests/campaigns/gpu.py --device cpu --quick     rehearses the stages without a GPU

Each stage prints its figures with the limits they must keep, and the first that fails ends the script. The figures, and
a description of the machine, are in build/gpu/test.json. docs/guides/first-gpu-run.md explains the stages.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from oracles.disturbed_runs import Ended, disturb, finish, start
from oracles.processes import ranks_of
from oracles.rank_work import exhaust_memory
from oracles.video import read_video
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import vinfinity
from vinfinity.bench.gpus import Trial, run_script
from vinfinity.bench.pairs import measure_pairs
from vinfinity.bench.stages import Figure, Skipped, Stage, at_least, at_most, equals, figure, says
from vinfinity.errors import VinfinityError
from vinfinity.job import prepare
from vinfinity.models.unet3d.temporal import TemporalTransformer
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import LocalExchange
from vinfinity.parallel.launch import launch
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.fit import outline_of
from vinfinity.planning.memory import RunMemory, trace_memory
from vinfinity.resolve import load_config
from vinfinity.run import run
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.parts import read_manifest

ROOT = Path(__file__).parents[2]
PROMPT = "a red ball bouncing over green grass"
MIB = 2**20
# errors of temporal attention against fp32 on the CPU, relative to the largest value
ATTENTION_LIMITS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# one execution, so that a resumed run computes the same
FIXED = {"compute.branches": "1", "compute.skips": "device", "compute.chunk": "16"}

# a run whose steps take clearly less memory in the leanest execution, which is still far more than decoding takes
LIMITED: dict[str, Any] = {
    "frames": 1600,
    "size": "512x320",
    "steps": 1,
    "sampler": "ddim",
    "decode.frames": 1,
}


# ---- helpers ----


def settings(trial: Trial, **more: Any) -> dict[str, Any]:
    """Return the settings of a video by the embedded model."""
    size = {"frames": 20, "steps": 2, "size": "64x48"} if trial.quick else {"frames": 96, "steps": 10}
    return {"prompt": PROMPT, "sampler": "ddim", "seed": 1, **size, **more}


def generate(trial: Trial, name: str, **more: Any) -> Path:
    """Return a run in this process, or on ranks that it starts. Returns the video."""
    out = trial.folder / f"{name}.mp4"
    given = settings(trial, device=trial.device, out=str(out), **more)
    run(load_config(**given))
    return out


def latents(video: Path) -> Tensor:
    """Return the final latents of a run, (c, f, h, w) fp32."""
    parts = read_manifest(video.with_suffix(".run") / "latents")
    return parts.read(range(parts.frames))


def denoised(pipeline: vinfinity.Pipeline, given: Mapping[str, Any]) -> Tensor:
    """Return the final latents of a video, on the CPU."""
    [last] = deque(pipeline.denoise(**given), maxlen=1)
    return last.x.float().cpu()


def rms(difference: Tensor, reference: Tensor) -> float:
    """Return the root mean square of a difference, relative to the standard deviation of the reference."""
    return (difference.double().square().mean().sqrt() / reference.double().std()).item()


def psnr(ours: Tensor, reference: Tensor) -> float:
    """Of pictures (f, height, width, 3) uint8, in dB; 99 for equal ones."""
    error = (ours.double() - reference.double()).square().mean().item()
    return 99.0 if error == 0 else float(10 * torch.tensor(255.0**2 / error).log10())


def pictures(video: Path) -> Tensor:
    """Return the frames of an MP4, (f, height, width, 3) uint8."""
    return torch.from_numpy(read_video(video))


def command(trial: Trial, name: str, *more: str) -> list[str]:
    """Return the arguments of a run that lasts long enough to be disturbed, and writes a checkpoint after each step."""
    size = ["--frames", "12", "--size", "64x48"] if trial.quick else ["--frames", "96"]
    given = [f"{key}={value}" for key, value in FIXED.items()]
    return [
        "generate",
        *("--prompt", PROMPT, "--sampler", "ddim", "--seed", "3", "--device", trial.device),
        *(*size, "--out", str(trial.folder / f"{name}.mp4"), "checkpoint.every=1 steps", *given, *more),
    ]


def checkpoint(trial: Trial, name: str, step: int) -> Path:
    """Return the file that completes the checkpoint after a step."""
    return trial.folder / f"{name}.run" / "checkpoints" / f"step-{step:04d}" / "manifest.json"


# ---- one GPU ----


def unit_tests(trial: Trial) -> Iterator[Figure]:
    """pytest -m gpu."""
    test = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    done = subprocess.run(test, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield figure("failed", line)
    yield figure("pytest -m gpu", lines[-1] if lines else done.stderr.strip()[-200:])
    yield equals("exit code", done.returncode, 0)


def attention(trial: Trial) -> Iterator[Figure]:
    """Yield a temporal layer by each backend of attention, against fp32 on the CPU."""
    backends = {"picked": None, "flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
    if trial.on_gpu:
        backends |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for width in (8, 64):
        # the last block of queries is 30 or 2 long; plain attention has no bias
        for frames, scopes in ((94, _scopes()), (66, _scopes()), (16, None)):
            torch.manual_seed(0)
            layer = TemporalTransformer(4 * width, heads=4, head_width=width, groups=4).eval()
            x = torch.randn(1, frames, 6, 8, 4 * width)
            with torch.inference_mode():
                expected = _layer(layer, x, scopes)
                for dtype, limit in ATTENTION_LIMITS.items():
                    layer.to(trial.device, dtype)
                    ours = x.to(trial.device, dtype)
                    for name, backend in backends.items():
                        title = f"{name}, {str(dtype)[6:]}, heads of {width}, {frames} frames"
                        try:
                            with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
                                found = _layer(layer, ours, scopes).float().cpu()
                        except RuntimeError as error:
                            if backend is None:
                                raise
                            yield figure(title, f"not available: {str(error).splitlines()[0][:80]}")
                            continue
                        error_ = (found - expected).abs().max() / expected.abs().max()
                        yield at_most(title, error_.item(), limit)
                    layer.to("cpu", torch.float32)


def _scopes() -> Scopes:
    # frames beyond both scopes have a bias of -inf
    return Scopes(local=8, anchors=16, anchor_bias=10.0)


def _layer(layer: TemporalTransformer, x: Tensor, scopes: Scopes | None) -> Tensor:
    frames = x.shape[1]
    context = temporal_context(LocalExchange(), FrameShards(frames), 0, scopes, device=x.device)
    return layer(x.clone(), context)


def against_cpu(trial: Trial) -> Iterator[Figure]:
    """fp32 without TF32, against the CPU."""
    given = settings(trial)
    ours, cpu = (
        denoised(vinfinity.Pipeline.from_pretrained("mini", device=device, dtype="fp32"), given)
        for device in (trial.device, "cpu")
    )
    yield at_most("latents, rms", rms(ours - cpu, cpu), 1e-3)


def half_precision(trial: Trial) -> Iterator[Figure]:
    """fp16 against itself, against fp32, and in every execution."""
    given = settings(trial)
    exact = vinfinity.Pipeline.from_pretrained("mini", device=trial.device, dtype="fp32")
    reference = exact(**given)
    half = vinfinity.Pipeline.from_pretrained("mini", device=trial.device, dtype="fp16")
    first, second = half(**given), half(**given)
    yield equals("largest difference of two runs", (first.latents - second.latents).abs().max().item(), 0.0)
    yield at_most("fp16 to fp32, rms", rms(first.latents - reference.latents, reference.latents), 0.03)
    yield figure("fp16 to fp32, PSNR", psnr(*map(torch.from_numpy, (first.frames, reference.frames))), "dB")
    chunks = (1, 64) if trial.quick else (1, 64, 256)
    for branches in (1, 2):
        for skips in ("device", "host"):
            for chunk in chunks:
                compute: dict[str, Any] = {
                    "compute.branches": branches,
                    "compute.skips": skips,
                    "compute.chunk": chunk,
                }
                video = half(**given, **compute)
                title = f"{branches} branch{'es' * (branches > 1)}, skips on {skips}, {chunk} MiB"
                yield at_least(title, psnr(*map(torch.from_numpy, (video.frames, first.frames))), 33.0, "dB")


def interrupted(trial: Trial) -> Iterator[Figure]:
    """Compare runs that are killed or interrupted, and resumed, with one that was not."""
    steps = ["--steps", "12" if trial.quick else "100"]
    whole = finish(start(command(trial, "whole", *steps)))
    yield equals("uninterrupted, exit code", whole.code, 0)
    expected = latents(trial.folder / "whole.mp4")
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        name = number.name.lower()
        process = start(command(trial, name, *steps))
        stop = functools.partial(process.send_signal, number)
        ended = disturb(process, checkpoint(trial, name, 3), stop)
        yield equals(f"{number.name}, exit code", ended.code, code)
        resumed = finish(start(["resume", str(trial.folder / f"{name}.run")]))
        yield equals("resumed, exit code", resumed.code, 0)
        difference = (latents(trial.folder / f"{name}.mp4") - expected).abs().max().item()
        yield equals("largest difference of the latents", difference, 0.0)


def memory(trial: Trial) -> Iterator[Figure]:
    """Yield a process gets less memory than the plan believes: `memory: auto` goes down to an execution that fits."""
    trial.needs_gpu("the allocator is given a limit")
    traced = traced_memory("cuda")
    # where the plan sees that a run takes a large part of what is free, it is rehearsed; CUDA takes the rest
    left = 1.3 * traced[0].needs("cuda")[0] + 0.6e9
    free = torch.cuda.mem_get_info()[0]
    if free < left:
        raise Skipped(f"needs {left / 1e9:.1f} GB of GPU memory, {free / 1e9:.1f} are free")
    filler = torch.empty(int(free - left), dtype=torch.uint8, device="cuda")
    try:
        for limit in memory_limits(traced):
            yield from judged(traced, limit, *_limited(trial, limit, traced))
        ended, _ = _limited(trial, 0.7 * traced[0].step.device, traced, "--memory", "fast")
        yield equals("memory=fast that does not fit, exit code", ended.code, 2)
        yield says("its message", ended.last_line, "memory=low")
    finally:
        del filler
        torch.cuda.empty_cache()


def traced_memory(device: str) -> list[RunMemory]:
    """Return the traced memory of LIMITED on a GPU in each execution, from the fastest to the leanest.

    device: the device of this process.
    """
    outline = outline_of(
        prepare(load_config(prompt=PROMPT, device=device, **LIMITED)), device="cuda", ranks=1
    )
    return [trace_memory(outline, execution) for execution in outline.executions]


def memory_limits(traced: Sequence[RunMemory]) -> list[float]:
    """Bytes for a process: ample, then too little for the fastest of the executions that are left, and at last for any.

    Only the steps decide: each limit is well above what decoding needs.
    """
    needs = list(dict.fromkeys(memory.step.device for memory in traced))
    return [2.0 * needs[0], *(0.9 * need for need in needs[:-1]), 0.5 * needs[-1]]


def judged(traced: Sequence[RunMemory], limit: float, ended: Ended, rung: int | None) -> Iterator[Figure]:
    """How a run within a limit should have ended: in an execution that fits, or refused if there is none."""
    name = f"limit {limit / 1e9:.2f} GB"
    yield figure(name, ended.last_line if rung is None else f"execution {rung}")
    fitting = [place for place, memory in enumerate(traced) if memory.step.device <= limit]
    if not fitting:
        yield equals(f"{name}, exit code", ended.code, 2)
        yield says("its message", ended.last_line, "out of memory")
    elif fitting[0] == 0:
        yield equals(f"{name}, execution", rung, 0)
    else:
        yield equals(f"{name}, exit code", ended.code, 0)
        yield at_least(f"{name}, execution", -1 if rung is None else rung, fitting[0])


def _limited(trial: Trial, limit: float, traced: Sequence[RunMemory], *more: str) -> tuple[Ended, int | None]:
    """Run with at most `limit` bytes of the GPU, and return the execution that was used; None if the run failed."""
    total = torch.cuda.get_device_properties(0).total_memory
    out = trial.folder / f"limited-{limit:.0f}.mp4"
    given = [f"{key}={value}" for key, value in LIMITED.items()]
    arguments = [
        "generate",
        "-p",
        PROMPT,
        "--device",
        "cuda",
        "--out",
        str(out),
        "--overwrite",
        *given,
        *more,
    ]
    program = (
        "import sys, torch; torch.cuda.set_per_process_memory_fraction(float(sys.argv[1]));"
        "from vinfinity.cli import main; main(sys.argv[2:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(limit / total), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    ended = finish(process)
    record = RunFolder(out.with_suffix(".run")).record() or {}
    taken = record.get("execution")
    places = [place for place, memory in enumerate(traced) if taken == vars(memory.execution)]
    return ended, places[0] if ended.code == 0 and places else None


# ---- several GPUs ----


def pairs(trial: Trial) -> Iterator[Figure]:
    """Every pair of GPUs sends each other 1 MiB."""
    found = measure_pairs(ranks=trial.several(), sizes=(MIB,), rounds=2, device=trial.device)
    for pair in found:
        yield figure(f"ranks {pair.first} and {pair.second}", pair.rate / 1e9, "GB/s")
    broken = [(pair.first, pair.second) for pair in found if not pair.intact]
    yield equals("pairs with wrong data", len(broken), 0)


def ranks_equal_one(trial: Trial) -> Iterator[Figure]:
    """fp32 without TF32 on one rank and on several, both guidance branches together and apart."""
    counts = sorted({2, 3, 4, trial.several()} & set(range(trial.ranks + 1)))
    alone = latents(generate(trial, "alone", dtype="fp32", gpus=1, guidance=2.0))
    scale = alone.abs().max()
    for count in counts:
        shared = latents(generate(trial, f"shared-{count}", dtype="fp32", gpus=count, guidance=2.0))
        # on the CPU they are the same to the bit
        limit = 1e-4 if trial.on_gpu else 0.0
        yield at_most(
            f"{count} ranks, largest difference", ((shared - alone).abs().max() / scale).item(), limit
        )
        split = {"parallel.split_guidance": True}
        apart = latents(generate(trial, f"apart-{count}", dtype="fp32", gpus=count, guidance=2.0, **split))
        error = ((apart - alone).abs().max() / scale).item()
        yield at_most(f"{count} ranks, guidance branches apart", error, 1e-4)


def decoding(trial: Trial) -> Iterator[Figure]:
    """Decode on rank 0, and on all ranks in turn."""
    ranks = trial.several()
    given = {"dtype": "fp32", "gpus": ranks, "steps": 2, "decode.frames": 4}
    first = generate(trial, "decoded-by-one", **given, **{"decode.where": "rank0"})
    all_ = generate(trial, "decoded-by-all", **given, **{"decode.where": "ranks"})
    yield equals(
        "largest difference of the latents", (latents(first) - latents(all_)).abs().max().item(), 0.0
    )
    difference = (pictures(first).int() - pictures(all_).int()).abs().max().item()
    yield equals("largest difference of the frames", difference, 0)


def half_on_ranks(trial: Trial) -> Iterator[Figure]:
    """fp16 on one rank and on several: equal to the bit on a CPU; on GPUs that is to be seen."""
    ranks = trial.several()
    alone, shared = (generate(trial, f"half-{count}", dtype="fp16", gpus=count) for count in (1, ranks))
    difference = latents(shared) - latents(alone)
    largest = difference.abs().max().item()
    title = "latents, largest difference"
    yield figure(title, largest) if trial.on_gpu else equals(title, largest, 0.0)
    yield figure("latents, rms", rms(difference, latents(alone)))
    yield at_least("frames, PSNR", psnr(pictures(shared), pictures(alone)), 30.0, "dB")


def hung_rank(trial: Trial) -> Iterator[Figure]:
    """Yield a rank that is suspended: all end in time, it is named, and the exit code is 3."""
    timeout = 15 if trial.quick else 20
    ended = _disturbed(trial, "hung", 1, signal.SIGSTOP, f"parallel.timeout={timeout}")
    yield at_most("seconds to the end", ended.seconds, timeout + 10)
    yield equals("exit code", ended.code, 3)
    yield says("message", ended.last_line, "rank 1")


def killed_rank(trial: Trial) -> Iterator[Figure]:
    """Yield a rank that is killed."""
    ended = _disturbed(trial, "killed", 1, signal.SIGKILL)
    yield at_most("seconds to the end", ended.seconds, 5)
    yield equals("exit code", ended.code, 3)
    yield says("message", ended.last_line, "rank 1")


def stopped_ranks(trial: Trial) -> Iterator[Figure]:
    """Ctrl-C while all ranks denoise: a checkpoint, exit code 75, and the run resumes on one rank."""
    ended = _disturbed(trial, "stopped", None, signal.SIGINT)
    yield equals("exit code", ended.code, 75)
    yield says("message", ended.last_line, "resume")
    yield equals("has a checkpoint", RunFolder(trial.folder / "stopped.run").holds_work(), True)


def _disturbed(trial: Trial, name: str, rank: int | None, number: signal.Signals, *more: str) -> Ended:
    """Run on all ranks, and send one rank or the launcher a signal after the second step."""
    ranks = trial.several()
    process = start(command(trial, name, "--gpus", str(ranks), "--steps", "1000", *more))

    def send() -> None:
        os.kill(process.pid if rank is None else ranks_of(process.pid)[rank], number)

    return disturb(process, checkpoint(trial, name, 2), send)


def rank_without_memory(trial: Trial) -> Iterator[Figure]:
    """Rank 1 asks for more memory than there is while the others wait for it."""
    started = time.monotonic()
    try:
        launch(exhaust_memory, None, gpus=trial.several(), device=trial.device, timeout=120.0)
        message, code = "no error", 0
    except VinfinityError as error:
        message, code = error.message, error.exit_code
    yield figure("seconds, with the start of the ranks", time.monotonic() - started)
    yield equals("exit code", code, 2)
    for words in ("rank 1", "out of memory", "memory=low"):
        yield says("message", message, words)


STAGES = [
    Stage("tests", "pytest -m gpu passes", unit_tests),
    Stage("attention", "errors at most 2e-3 in fp16 and 1.6e-2 in bf16, by each backend", attention),
    Stage("against-cpu", "fp32 latents within 1e-3 rms of the CPU's", against_cpu),
    Stage("half-precision", "the same bits twice; 3 % rms to fp32; 33 dB between executions", half_precision),
    Stage("interrupted", "exit code 75 on SIGTERM; the same bits after a resume", interrupted),
    Stage("memory", "less memory takes a leaner execution; too little is refused with exit code 2", memory),
    Stage("pairs", "every pair of ranks gets what was sent", pairs),
    Stage("ranks", "fp32 latents within 1e-4 of one rank's", ranks_equal_one),
    Stage("decoding", "the same frames by one rank and by all", decoding),
    Stage("half-on-ranks", "fp16 frames within 30 dB of one rank's", half_on_ranks),
    Stage("hung-rank", "named, all ended 10 s after the timeout, exit code 3", hung_rank),
    Stage("killed-rank", "named, all ended in 5 s, exit code 3", killed_rank),
    Stage("out-of-memory", "the rank and a remedy are named, exit code 2", rank_without_memory),
    Stage("ctrl-c", "exit code 75 with a checkpoint", stopped_ranks),
]


if __name__ == "__main__":
    # fp32 is compared with the CPU's
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    sys.exit(run_script("test-gpu", __doc__ or "", STAGES, out=ROOT / "build" / "gpu" / "test.json"))
