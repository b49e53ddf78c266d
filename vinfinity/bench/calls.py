"""Calls of a denoiser as a run makes them: time and memory, the plan's figures for both, and what a profiler sees."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from vinfinity.bench.denoiser import call_inputs
from vinfinity.bench.subjects import Subject, dtype_of
from vinfinity.denoise.execution import Execution
from vinfinity.parallel.exchange import LocalExchange
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.estimate import denoiser_products, work_seconds
from vinfinity.planning.machines import GPUS, Gpu
from vinfinity.planning.meter import LiveBytes
from vinfinity.planning.trace import TIMESTEP, CallShape, network_call, parameter_bytes, trace_work

# calls of the CUDA runtime that make the host wait for the device
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
OPERATIONS = 10
# the name of the last event of a profile
END = "end of the call"
# names of drivers that differ from those in `GPUS`, and words for smaller GPUs of the same name
DRIVER_NAMES = {"H100 SXM": "H100 HBM3"}
LESSER = {"LAPTOP", "D", "MIG"}


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a call on a GPU, in bytes.

    retries: how often the allocator had to release its cache and try again. pinned: host memory that is locked for
    copies; None if this torch does not count it.
    """

    allocated: int
    reserved: int
    retries: int
    pinned: int | None


@dataclass(frozen=True)
class CallFigures:
    """A call of a denoiser with `execution.branches` guidance branches.

    seconds: the median of several calls. planned: the seconds by the plan's rule for this GPU; None if the GPU is not
    known. traced, traced_host: bytes on the device and on the host by the plan's trace. memory: None on the CPU.
    """

    frames: int
    execution: Execution
    seconds: float
    planned: float | None
    traced: int
    traced_host: int
    memory: DeviceMemory | None


@dataclass(frozen=True)
class Profile:
    """What a profiler recorded of one call.

    busy: seconds in which a kernel ran; on the CPU, the time of all operations. waits: how often the host waited for
    the device. operations: (name, seconds) of those that took longest.
    """

    busy: float
    waits: int
    operations: tuple[tuple[str, float], ...]


def prepare_call(
    subject: Subject, network: nn.Module, *, frames: int, execution: Execution
) -> tuple[CallShape, Callable[[], Tensor]]:
    """Return a call of `network`, which is `subject` loaded, on one rank that holds the whole video, with its shapes.

    frames: the number of frames of the video.
    """
    device = next(network.parameters()).device
    grouped = subject.grouped(dtype_of(network), device.type)
    shards = FrameShards.of(subject.geometry.latent_frames(frames), grouped=grouped)
    scopes = subject.scopes if shards.frames > subject.trained_frames else None
    shape = subject.call_shape(network, shards=shards, scopes=scopes)
    x, text = call_inputs(shape, device=str(device))
    call = network_call(shape, execution, LocalExchange(), network=network, text=text[: execution.branches])

    def run() -> Tensor:
        with torch.inference_mode():
            return call(x, TIMESTEP)

    return shape, run


def measure_call(
    subject: Subject,
    network: nn.Module,
    *,
    frames: int,
    execution: Execution,
    rounds: int,
    gpu: Gpu | None = None,
) -> CallFigures:
    """Time and memory of a call, after one that warms up. gpu: published figures, for the plan's time."""
    device = next(network.parameters()).device
    on_gpu = device.type == "cuda"
    shape, call = prepare_call(subject, network, frames=frames, execution=execution)
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    retries = torch.cuda.memory_stats(device).get("num_alloc_retries", 0) if on_gpu else 0
    seconds = [timed(call, device) for _ in range(rounds)]
    memory = None
    if on_gpu:
        memory = DeviceMemory(
            allocated=torch.cuda.max_memory_allocated(device),
            reserved=torch.cuda.max_memory_reserved(device),
            retries=torch.cuda.memory_stats(device).get("num_alloc_retries", 0) - retries,
            pinned=pinned_bytes(),
        )
    planned = None
    if gpu is not None:
        work, products = trace_work(shape).counter, denoiser_products(shape.dtype)
        planned = work_seconds(work, gpu, batch=execution.branches, products=products)
    traced, traced_host = trace_call(shape, execution)
    return CallFigures(
        frames=frames,
        execution=execution,
        seconds=statistics.median(seconds),
        planned=planned,
        traced=traced,
        traced_host=traced_host,
        memory=memory,
    )


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, up to the end of its work on the device."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@torch.inference_mode()
def trace_call(shape: CallShape, execution: Execution) -> tuple[int, int]:
    """Peak memory of a call on meta tensors, weights included: bytes on the device, and on the host."""
    call = network_call(shape, execution, shape.traced_exchange(), few_pieces=True)
    with LiveBytes() as live:
        call(torch.empty(shape.latents, dtype=shape.dtype, device="meta"), TIMESTEP)
    return parameter_bytes(call.network) + live.peak, live.host_peak


def pinned_bytes() -> int | None:
    """Return the peak of host memory that was locked for copies; None if this torch does not count it."""
    # new in torch 2.8
    count = getattr(torch.cuda, "host_memory_stats", None)
    found = count() if count is not None else {}
    return found.get("allocated_bytes.peak")


def profile_call(call: Callable[[], object], device: torch.device) -> Profile:
    """Profiles one call, which should have run before."""
    activities = [ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        call()
        # before the wait that ends the measurement
        with torch.profiler.record_function(END):
            pass
        if on_gpu:
            torch.cuda.synchronize(device)
    events = list(profiler.events())
    end = max(event.time_range.end for event in events if event.name == END)
    kernels = [event for event in events if _on_device(event)]
    waits = [event for event in events if event.name in WAITS and event.time_range.start < end]
    if not on_gpu:
        kernels = [event for event in events if event.cpu_parent is None and event.name != END]
    return Profile(
        busy=covered([(event.time_range.start, event.time_range.end) for event in kernels]) / 1e6,
        waits=len(waits),
        operations=longest(profiler.key_averages(), on_gpu=on_gpu),
    )


def longest(averages: Iterable[FunctionEventAvg], *, on_gpu: bool) -> tuple[tuple[str, float], ...]:
    """(name, seconds) of those that took the longest: kernels of a GPU, or operations of the CPU.

    On a GPU, operations of the host have the time of their kernels, which must not count twice.
    """
    if on_gpu:
        totals = [(str(one.key), one.self_device_time_total / 1e6) for one in averages if _on_device(one)]
    else:
        totals = [(str(one.key), one.self_cpu_time_total / 1e6) for one in averages]
    return tuple(sorted(totals, key=lambda entry: -entry[1])[:OPERATIONS])


def _on_device(event: FunctionEvent | FunctionEventAvg) -> bool:
    """Return whether an event is a kernel or a copy on a GPU, not a span that the program has named."""
    # older versions of torch do not mark them
    named = getattr(event, "is_user_annotation", False)
    return event.device_type == DeviceType.CUDA and not named


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of spans (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def published_figures(name: str) -> Gpu | None:
    """Return the published figures of a GPU by the name that its driver gives; None if it is not in `GPUS`."""
    words = set(name.upper().replace("-", " ").split())
    if words & LESSER:
        return None
    for known, gpu in GPUS.items():
        if words.issuperset(DRIVER_NAMES.get(known, known).upper().split()):
            return gpu
    return None
